package main

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// scrape reads /metrics as text.
func (n *node) scrape(t testing.TB) string {
	t.Helper()
	response, err := http.Get("http://127.0.0.1:" + n.port() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("/metrics is answered with %d %s, %v", response.StatusCode, body, err)
	}
	return string(body)
}

// busyNode has done a bit of everything that is counted.
func busyNode(t *testing.T) *node {
	t.Helper()
	b := miniRedis(t)
	n := startWithAPI(t, b)
	witness := n.member(t, "home", "witness", "{}")
	for _, name := range []string{"ann", "bob", "eve"} {
		u := n.member(t, "home", name, "{}")
		u.ok(eventHeartbeat, `{"patchState":{"a":1}}`)
		u.refused(eventHeartbeat, inRoom("elsewhere", ""), CodeNotJoined)
		u.refused(eventJoin, `{}`, CodeInvalidPayload)
		switch name {
		case "ann":
			u.join("home", "ann again", "{}")
			u.ok(eventLeave, "")
		case "bob":
			_ = u.conn.Close()
		case "eve":
			n.kick(t, "home", u.id)
		}
		witness.sees(EventLeave, u.id)
	}
	watcher := n.user(t)
	watcher.ok(eventWatch, inRoom("home", ""))
	watcher.ok(eventWatch, inRoom("watched", ""))
	watcher.ok(eventGet, inRoom("read", ""))
	return n
}

func TestMetricsCountWhatTheNodeDoes(t *testing.T) {
	n := busyNode(t)
	text := ""
	for _, line := range []string{
		"presence_connections 4", // witness, ann, eve, watcher
		"presence_rooms 1",       // a room that is watched or read only does not count
		"presence_members 1",     // eve was kicked, ann left
		"presence_joins_total 5",
		`presence_leaves_total{reason="left"} 1`,
		`presence_leaves_total{reason="disconnected"} 1`,
		`presence_leaves_total{reason="kicked"} 1`,
		`presence_leaves_total{reason="replaced"} 1`,
		`presence_leaves_total{reason="timeout"} 0`,
		`presence_heartbeats_total{code=""} 3`,
		`presence_heartbeats_total{code="not_joined"} 3`,
		`presence_refusals_total{code="invalid_payload"} 3`,
		`presence_redis_seconds_count{script="kick"} 2`, // of the API, and of the node that was told of it
		"presence_redis_failures_total 0",
		"presence_pubsub_gaps_total 0",
		`presence_build_info{goversion="go`,
		`version="` + version + `"`,
		"go_goroutines ",
		"process_resident_memory_bytes ",
	} {
		if !poll(5*time.Second, func() bool { text = n.scrape(t); return strings.Contains(text, line) }) {
			t.Errorf("no line with %s in\n%s", line, regexp.MustCompile(`(?m)^(#.*|go_.*|.*_bucket.*)\n`).ReplaceAllString(text, ""))
		}
	}
	for _, more := range []string{"presence_deliveries_total", "presence_pubsub_messages_total", "presence_delivery_seconds_count"} {
		if !regexp.MustCompile(`(?m)^` + more + ` [1-9]`).MatchString(text) {
			t.Errorf("%s does not count", more)
		}
	}
	for _, theirs := range []string{"home", "ann", "witness"} {
		if strings.Contains(text, theirs) {
			t.Errorf("a label holds %q, which came from a client", theirs)
		}
	}
}

// TestMetricsCountFaults loses a message, Redis' answer, and a silent member.
func TestMetricsCountFaults(t *testing.T) {
	b := miniRedis(t)
	n := startNodeFor(t, b, "PRESENCE_REAPER_INTERVAL_MS=20")
	u := n.member(t, "home", "ann", "{}")
	silently := startService(t, b.open(t), Options{})
	keys := append(scriptKeys("home", "c1"), keysOf("home").devices())
	if _, err := silently.run(t.Context(), silently.scripts.join, keys, silently.publishArgs("elsewhere", 0, "c1", "bob", `"bob"`, "{}", "", "", 60_000, 0, "home", "", 60_000)...); err != nil {
		t.Fatal(err)
	}
	u.ok(eventHeartbeat, `{"patchState":{"a":1}}`)
	for _, counted := range []string{"presence_pubsub_gaps_total", "presence_pubsub_repairs_total", "presence_reaper_rooms_total"} {
		if counted == "presence_reaper_rooms_total" && silently.indexRoom(t.Context(), "home", 0) != nil {
			t.Fatal("no index")
		}
		line := regexp.MustCompile(`(?m)^` + counted + ` [1-9]`)
		eventually(t, 10*time.Second, counted, func() bool { return line.MatchString(n.scrape(t)) })
	}
	b.mini.SetError("gone")
	u.refused(eventHeartbeat, "", CodeUnavailable)
	b.mini.SetError("")
	if line := regexp.MustCompile(`(?m)^presence_redis_failures_total [1-9]`); !line.MatchString(n.scrape(t)) {
		t.Error("no failure is counted")
	}
}

// TestEveryQueryOfTheDashboardFindsItsMetrics also wants labels that are selected to have that value, and those that are
// grouped by to exist.
func TestEveryQueryOfTheDashboardFindsItsMetrics(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readText(t, "deploy/grafana.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	n := busyNode(t)
	n.handlers.refusals.add(refusedSlow)
	text := n.scrape(t)
	queries := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries++
			metrics := regexp.MustCompile(`\b(presence|go|process)_\w+`).FindAllString(target.Expr, -1)
			if len(metrics) != 1 || !regexp.MustCompile(`(?m)^`+metrics[0]+`[ {]`).MatchString(text) {
				t.Errorf("%s: %s finds nothing", panel.Title, target.Expr)
				continue
			}
			for _, grouped := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(target.Expr, -1) {
				for label := range strings.SplitSeq(grouped[1], ", ") {
					if !regexp.MustCompile(`(?m)^` + metrics[0] + `\{.*\b` + label + `="`).MatchString(text) {
						t.Errorf("%s: %s has no label %s", panel.Title, metrics[0], label)
					}
				}
			}
			for _, selected := range regexp.MustCompile(`(code|reason)=~?"([^"]*)"`).FindAllStringSubmatch(target.Expr, -1) {
				if !regexp.MustCompile(`(?m)^` + metrics[0] + `\{.*` + selected[1] + `="(` + selected[2] + `)"`).MatchString(text) {
					t.Errorf("%s: %s has no %s", panel.Title, metrics[0], selected[0])
				}
			}
		}
	}
	if queries < 15 {
		t.Errorf("only %d queries are looked at", queries)
	}
}

func TestREADMEAndDocsExplainEveryMetric(t *testing.T) {
	var named []string
	for _, row := range table(section(t, "Metrics"), "metric") {
		named = append(named, row[0])
	}
	var there []string
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (presence_\w+) `).FindAllStringSubmatch(busyNode(t).scrape(t), -1) {
		there = append(there, match[1])
	}
	if missing := without(there, named); len(missing) > 0 {
		t.Errorf("the documents lack %q", missing)
	}
	if missing := without(named, there); len(missing) > 0 {
		t.Errorf("only the documents have %q", missing)
	}
}

func TestTheVersionIsThatOfTheChangelog(t *testing.T) {
	newest := regexp.MustCompile(`(?m)^## (\d+\.\d+\.\d+)$`).FindStringSubmatch(readText(t, "CHANGELOG.md"))
	if newest == nil || newest[1] != version {
		t.Errorf("the newest version in CHANGELOG.md is %q, that of the program %s", newest, version)
	}
}

// counted is the value of a counter.
func counted(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// TestMetricsCountEveryReason: one that is not in the list would be counted nowhere.
func TestMetricsCountEveryReason(t *testing.T) {
	var listed []string
	for _, reason := range reasons {
		listed = append(listed, string(reason))
	}
	all := texts(t, sources(t)["types.go"], "Reason")
	slices.Sort(all)
	slices.Sort(listed)
	if !slices.Equal(listed, all) {
		t.Errorf("the list has %q, the constants are %q", listed, all)
	}
}
