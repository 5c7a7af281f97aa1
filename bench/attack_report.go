package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// attackTable prints the results of attacks for people.
func (r report) attackTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "attack\tattackers\tsent/s\tanswered\trefused\tclosed\tcalm p50 ms\tp99\tmax\tvictims p50 ms\tp99\tmax\tlag p99 ms\tMB before\tpeak\tafter\tdescriptors before\tpeak\tafter\tRedis MB before\tpeak\tafter\tnewcomers failed\t")
	for _, x := range r.Results {
		a := x.Attack
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\t%s\t%s%s%s\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t\n", x.Mode, x.Clients, orDash(x.PerSecond), a.Answered, a.Refused,
			marked(fmt.Sprint(a.Closed), a.Lawful && a.Closed > 0), a.Calm.spread(), a.Victims.spread(), a.Lag.highest(),
			a.Megabytes.Before, marked(fmt.Sprint(a.Megabytes.Peak), a.Megabytes.Peak > targetMegabytes), a.Megabytes.After,
			a.Descriptors.Before, a.Descriptors.Peak, a.Descriptors.After, a.RedisMegabytes.Before, a.RedisMegabytes.Peak, a.RedisMegabytes.After,
			marked(fmt.Sprintf("%d of %d", a.NewcomersFailed, a.Newcomers), a.NewcomersFailed > 0))
	}
	fmt.Fprintln(w)
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "calm, victims: heartbeats of %d members before and during the attack. lag: how late bench itself was. closed: connections of attackers. newcomers: who ask /readyz and connect. !: over %d ms at p99 or %d MB, a newcomer that was not served, or a lawful client that was closed.\n",
		victims, targetP99, targetMegabytes)
	return err
}

// spread is the cells of median, p99 and maximum.
func (l *latency) spread() string {
	if l == nil {
		return "–\t–\t–\t"
	}
	return fmt.Sprintf("%s\t%s\t%s\t", orDash(l.P50), marked(orDash(l.P99), l.P99 > targetP99), orDash(l.Max))
}

// highest is the cell of p99.
func (l *latency) highest() string {
	if l == nil {
		return "–"
	}
	return orDash(l.P99)
}

func marked(text string, missed bool) string {
	if missed {
		return text + " !"
	}
	return text
}

// fault is an error for what must not happen, however busy the machine is.
func (a *attackResult) fault(mode string) error {
	switch {
	case a.Failure != "":
		return fmt.Errorf("%s: %s", mode, a.Failure)
	case a.Lawful && a.Closed > 0:
		return fmt.Errorf("%s: %d connections were closed that did nothing wrong", mode, a.Closed)
	}
	return nil
}
