package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

// pair is what one mode found of two servers, one run directly after the other.
type pair struct{ before, after result }

// figure is a number of a result that may be compared. It is 0 where the mode has none.
type figure struct {
	name string
	of   func(result) float64
}

var figures = []figure{
	{"server", func(r result) float64 { return r.Server.perOperation() }},
	{"Redis", func(r result) float64 { return r.Redis.perOperation() }},
	{"p50", func(r result) float64 { return r.latency().share(func(l *latency) float64 { return l.P50 }) }},
	{"p99", func(r result) float64 { return r.latency().share(func(l *latency) float64 { return l.P99 }) }},
	{"max", func(r result) float64 { return r.latency().share(func(l *latency) float64 { return l.Max }) }},
	{"per second", func(r result) float64 { return r.PerSecond }},
	{"KB/conn", func(r result) float64 { return r.KilobytesPerConnection }},
}

// perOperation is the CPU time of an operation, or of a second where the mode has no operations.
func (c *cost) perOperation() float64 {
	if c == nil {
		return 0
	}
	if c.Micros > 0 {
		return c.Micros
	}
	return c.CorePercent
}

func (l *latency) share(of func(*latency) float64) float64 {
	if l == nil {
		return 0
	}
	return of(l)
}

// compare runs each mode with both servers in turn, so that both find the same machine, and prints the ratios new/old. Faults of
// the server in -server are an error; the other one may have them.
func (s settings) compare(ctx context.Context, modes []mode, dir string, out io.Writer) error {
	old := s
	old.server = s.against
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "mode\t")
	for _, f := range figures {
		fmt.Fprintf(w, "%s\t", f.name)
	}
	fmt.Fprintln(w)
	faults := newReport()
	for _, m := range modes {
		var pairs []pair
		for i := range s.pairs {
			fmt.Fprintf(os.Stderr, "%s, pair %d of %d: %s\n", m.name, i+1, s.pairs, m.about())
			var p pair
			var err error
			if p.before, err = (trial{settings: old, mode: m, dir: dir}).run(ctx); err != nil {
				return fmt.Errorf("%s, %s: %w", m.name, s.against, err)
			}
			if p.after, err = (trial{settings: s, mode: m, dir: dir}).run(ctx); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			pairs = append(pairs, p)
			faults.Results = append(faults.Results, p.after)
		}
		fmt.Fprintf(w, "%s\t", m.name)
		for _, f := range figures {
			fmt.Fprintf(w, "%s\t", ratioOf(pairs, f))
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nnew/old: the median of %d pairs, and the least and the greatest. Server and Redis: CPU per operation.\n", s.pairs)
	return faults.faults()
}

// ratioOf is the median of new/old and its range.
func ratioOf(pairs []pair, f figure) string {
	var ratios []float64
	for _, p := range pairs {
		if old := f.of(p.before); old > 0 {
			ratios = append(ratios, f.of(p.after)/old)
		}
	}
	if len(ratios) == 0 {
		return "–"
	}
	slices.Sort(ratios)
	median := (ratios[(len(ratios)-1)/2] + ratios[len(ratios)/2]) / 2
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median, ratios[0], ratios[len(ratios)-1])
}
