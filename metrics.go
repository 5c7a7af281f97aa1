package main

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics count what this node does. No label comes from a client, and what happens for each event or heartbeat is one
// atomic addition or a few. The methods of a nil *metrics do nothing.
type metrics struct {
	registry *prometheus.Registry

	joins      prometheus.Counter
	leaves     map[Reason]prometheus.Counter
	heartbeats map[Code]prometheus.Counter // "" = ok
	calls      *prometheus.HistogramVec    // by script
	scripts    sync.Map                    // script → its prometheus.Observer in calls: to look there takes longer
	failures   prometheus.Counter
	reaped     prometheus.Counter
	messages   prometheus.Counter
	delivered  prometheus.Counter
	delivery   prometheus.Histogram
	gaps       prometheus.Counter
	repairs    prometheus.Counter
	hooks      map[string]prometheus.Counter
}

// What becomes of an event for the webhook.
const (
	hookSent    = "sent"
	hookFailed  = "failed"  // given up after many tries
	hookDropped = "dropped" // too many waited
)

// gauges are what is counted when somebody asks.
type gauges struct {
	connections func() int
	hosted      func() (rooms, members int)
	refusals    func() map[string]int64 // by code
	lostLines   func() map[string]int64 // of the log, by reason
}

func newMetrics(g gauges) *metrics {
	r := prometheus.NewRegistry()
	m := &metrics{registry: r,
		joins:     counter(r, "joins_total", "Members that joined by this node, a join again included."),
		reaped:    counter(r, "reaper_rooms_total", "Rooms that this node's reaper looked at."),
		messages:  counter(r, "pubsub_messages_total", "Messages of rooms that came from Redis."),
		delivered: counter(r, "deliveries_total", "Events handed to a connection."),
		failures:  counter(r, "redis_failures_total", "Calls of scripts that failed."),
		gaps:      counter(r, "pubsub_gaps_total", "Times that messages of a room were found to be missing."),
		repairs:   counter(r, "pubsub_repairs_total", "Differences told after a room was read anew."),
	}
	m.leaves = counters(r, "leaves_total", "Members that left by this node's doing.", "reason", reasons...)
	m.heartbeats = counters(r, "heartbeats_total", "Heartbeats by the code of their answer, none if it is well.", "code", "",
		CodeInvalidPayload, CodeStateTooLarge, CodeNotJoined, CodeStaleEpoch, CodeRateLimited, CodeForbidden, CodeUnavailable)
	m.hooks = counters(r, "webhook_events_total", "Events for the webhook, by what became of them.", "result", hookSent, hookFailed, hookDropped)
	m.delivery = prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "presence", Name: "delivery_seconds",
		Help: "From messages of Redis in a batch to their last write.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)})
	m.calls = prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "presence", Name: "redis_seconds",
		Help: "Calls of scripts in Redis, waiting included.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}, []string{"script"})
	r.MustRegister(m.delivery, m.calls, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registerGauges(g)
	return m
}

func (m *metrics) registerGauges(g gauges) {
	b := thisBuild()
	built := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "presence", Name: "build_info", Help: "Always 1.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": b.goVersion, "revision": b.revision}})
	built.Set(1)
	m.registry.MustRegister(built,
		outsideCounters{prometheus.NewDesc("presence_refusals_total", "What was refused, by code.", []string{"code"}, nil), g.refusals},
		outsideCounters{prometheus.NewDesc("presence_log_lines_lost_total", "Lines of the log that were not written, by reason.", []string{"reason"}, nil), g.lostLines})
	gauge(m.registry, "connections", "Clients that are connected to this node.", g.connections)
	gauge(m.registry, "rooms", "Rooms with a member on this node.", func() int { rooms, _ := g.hosted(); return rooms })
	gauge(m.registry, "members", "Members on this node: a client in two rooms is two.", func() int { _, members := g.hosted(); return members })
}

// gauge asks for its value whenever somebody wants to see it.
func gauge(r *prometheus.Registry, name, help string, value func() int) {
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "presence", Name: name, Help: help},
		func() float64 { return float64(value()) }))
}

func counter(r *prometheus.Registry, name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "presence", Name: name, Help: help})
	r.MustRegister(c)
	return c
}

// counters are one for each value of a label. All are there from the start, at 0.
func counters[K ~string](r *prometheus.Registry, name, help, label string, values ...K) map[K]prometheus.Counter {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "presence", Name: name, Help: help}, []string{label})
	r.MustRegister(vec)
	all := make(map[K]prometheus.Counter, len(values))
	for _, value := range values {
		all[value] = vec.WithLabelValues(string(value))
	}
	return all
}

// outsideCounters shows counters that are kept elsewhere, by their label.
type outsideCounters struct {
	desc   *prometheus.Desc
	counts func() map[string]int64
}

func (c outsideCounters) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

func (c outsideCounters) Collect(out chan<- prometheus.Metric) {
	for label, n := range c.counts() {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(n), label)
	}
}

// handler answers in the format that is asked for.
func (m *metrics) handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)})
}

// called counts one call of a script.
func (m *metrics) called(script string, took time.Duration, err error) {
	observer, known := m.scripts.Load(script)
	if !known {
		observer = m.calls.WithLabelValues(script)
		m.scripts.Store(script, observer)
	}
	observer.(prometheus.Observer).Observe(took.Seconds())
	if err != nil {
		m.failures.Inc()
	}
	if script == "overdue" {
		m.reaped.Inc()
	}
}

func (m *metrics) countLeaves(reason Reason, n int) {
	if m != nil {
		m.leaves[reason].Add(float64(n))
	}
}

// batch counts messages of Redis that were handled together.
func (m *metrics) batch(messages int, took time.Duration) {
	if m == nil {
		return
	}
	m.messages.Add(float64(messages))
	m.delivery.Observe(took.Seconds())
}

func (m *metrics) handed(receivers int) {
	if m != nil {
		m.delivered.Add(float64(receivers))
	}
}

func (m *metrics) gap() {
	if m != nil {
		m.gaps.Inc()
	}
}

func (m *metrics) repaired(differences int) {
	if m != nil {
		m.repairs.Add(float64(differences))
	}
}

// answered counts the answer to a request of a client.
func (m *metrics) answered(event string, code Code) {
	switch {
	case m == nil:
	case event == eventHeartbeat:
		if n := m.heartbeats[code]; n != nil {
			n.Inc()
		}
	case event == eventJoin && code == "":
		m.joins.Inc()
	}
}

// posted counts events for the webhook.
func (m *metrics) posted(result string, events int) {
	if m != nil {
		m.hooks[result].Add(float64(events))
	}
}
