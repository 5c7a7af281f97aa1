package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run found, as it goes to the file.
type report struct {
	Measured time.Time `json:"measured"`
	Cores    int       `json:"cores"`
	Results  []result  `json:"results"`
}

func newReport() report {
	return report{Measured: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU()}
}

// result is that of one mode.
type result struct {
	Mode       string  `json:"mode"`
	Operation  string  `json:"operation"` // what costs are per
	Clients    int     `json:"clients"`
	Rooms      int     `json:"rooms"`
	Nodes      int     `json:"nodes"`
	Seconds    float64 `json:"seconds"` // of the window
	Operations int64   `json:"operations"`
	PerSecond  float64 `json:"perSecond"`
	Delivered  int64   `json:"eventsDelivered"`

	FloorBefore float64 `json:"wBeforeMicros"`
	FloorAfter  float64 `json:"wAfterMicros"`
	Server      *cost   `json:"server,omitempty"` // of all nodes together
	Redis       *cost   `json:"redis,omitempty"`

	Answer   *latency `json:"answerMs,omitempty"`   // from a request to its acknowledgement
	Delivery *latency `json:"deliveryMs,omitempty"` // from an update's request to its arrival at each member

	Lost       int64 `json:"lost"`
	Doubled    int64 `json:"doubled"`
	Disordered int64 `json:"disordered"`
	Refused    int64 `json:"refused"`

	KilobytesPerConnection float64 `json:"kilobytesPerConnection,omitempty"` // resident, of the servers, at the end of the window
	TargetKilobytes        float64 `json:"targetKilobytes,omitempty"`

	FramesPerReceiver float64   `json:"framesPerReceiver,omitempty"` // in a second
	BytesPerReceiver  float64   `json:"bytesPerReceiver,omitempty"`  // in a second
	BytesPerMember    float64   `json:"bytesPerMember,omitempty"`    // in Redis
	MasterPercent     []float64 `json:"masterPercent,omitempty"`     // of a core, of each

	Attack *attackResult `json:"attack,omitempty"`
}

// cost is CPU time: of one operation, where the mode has operations, and as a share of one core over the window.
type cost struct {
	Micros      float64 `json:"micros,omitempty"`
	W           float64 `json:"w,omitempty"`
	TargetW     float64 `json:"targetW,omitempty"`
	CorePercent float64 `json:"corePercent"`
}

// price gives the costs in w, the mean of the two.
func (r *result) price(before, after time.Duration) {
	micros := func(d time.Duration) float64 { return round(float64(d.Nanoseconds())/1e3, 3) }
	r.FloorBefore, r.FloorAfter = micros(before), micros(after)
	for _, c := range []*cost{r.Server, r.Redis} {
		if c != nil {
			c.W = round(c.Micros/(float64((before+after).Nanoseconds())/2e3), 3)
			c.Micros = round(c.Micros, 3)
		}
	}
}

// table prints the results for people.
func (r report) table(out io.Writer) error {
	costs, attacks := r, r
	costs.Results = slices.DeleteFunc(slices.Clone(r.Results), func(x result) bool { return x.Attack != nil })
	attacks.Results = slices.DeleteFunc(slices.Clone(r.Results), func(x result) bool { return x.Attack == nil })
	if len(attacks.Results) == 0 {
		return costs.costTable(out)
	}
	if len(costs.Results) > 0 {
		if err := costs.costTable(out); err != nil {
			return err
		}
	}
	return attacks.attackTable(out)
}

func (r report) costTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "mode\tclients\trooms\tper second\tserver %\tµs\tw\ttarget\tRedis %\tµs\tw\ttarget\tp50 ms\tp95\tp99\tmax\tlost\tdoubled\tdisordered\tKB/conn\tframes/s\tbytes/s\tB/member\tmasters %\tw µs\t")
	for _, x := range r.Results {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s%s%s%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%.3g–%.3g\t\n", x.Mode, x.Clients, x.Rooms, orDash(x.PerSecond),
			x.Server.cells(), x.Redis.cells(), x.latency().cells(), x.Lost, x.Doubled, x.Disordered,
			withTarget(x.KilobytesPerConnection, x.TargetKilobytes),
			orDash(x.FramesPerReceiver), orDash(x.BytesPerReceiver), orDash(x.BytesPerMember), orDashes(x.MasterPercent), min(x.FloorBefore, x.FloorAfter), max(x.FloorBefore, x.FloorAfter))
	}
	fmt.Fprintln(w)
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "%: of one core. µs, w: CPU per operation. frames/s, bytes/s: to each receiver. Latency: from an update to its arrival where there are receivers, else to the answer. !: target missed.")
	return err
}

// latency is that of what the mode is about.
func (r result) latency() *latency {
	if r.Delivery != nil && r.Operation != "patch" {
		return r.Delivery
	}
	return r.Answer
}

func (c *cost) cells() string {
	if c == nil {
		return "–\t–\t–\t–\t"
	}
	mark := ""
	if c.missed() {
		mark = " !"
	}
	return fmt.Sprintf("%s\t%s\t%s%s\t%s\t", orDash(c.CorePercent), orDash(c.Micros), orDash(c.W), mark, orDash(c.TargetW))
}

func (c *cost) missed() bool { return c.TargetW > 0 && c.W > c.TargetW }

func (l *latency) cells() string {
	if l == nil {
		return "–\t–\t–\t–\t"
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t", orDash(l.P50), orDash(l.P95), orDash(l.P99), orDash(l.Max))
}

func withTarget(is, target float64) string {
	switch {
	case target == 0:
		return orDash(is)
	case is > target:
		return fmt.Sprintf("%s (%g) !", orDash(is), target)
	}
	return fmt.Sprintf("%s (%g)", orDash(is), target)
}

// orDash is a number without an exponent, or a dash for none.
func orDash(x float64) string {
	if x == 0 {
		return "–"
	}
	return strconv.FormatFloat(x, 'f', -1, 64)
}

func orDashes(all []float64) string {
	texts := make([]string, 0, len(all))
	for _, x := range all {
		texts = append(texts, orDash(x))
	}
	return cmp.Or(strings.Join(texts, " "), "–")
}

// faults is an error for each mode in which a server did not do what it must.
func (r report) faults() (err error) {
	for _, x := range r.Results {
		if x.Lost+x.Doubled+x.Disordered+x.Refused > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %d events lost, %d doubled, %d disordered, %d requests refused",
				x.Mode, x.Lost, x.Doubled, x.Disordered, x.Refused))
		}
		if x.Attack != nil {
			err = errors.Join(err, x.Attack.fault(x.Mode))
		}
	}
	return err
}
