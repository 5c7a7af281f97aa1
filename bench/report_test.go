package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample has each kind of figure: met, missed, and none.
func sample() report {
	r := report{Results: []result{
		{Mode: "heartbeat", Operation: "heartbeat", Operations: 10, Server: &cost{Micros: 12, TargetW: 2.8}, Redis: &cost{Micros: 9, TargetW: 1.4}, Answer: &latency{1, 2, 3, 4}},
		{Mode: "idle", Operation: "<connection> & more", KilobytesPerConnection: 14, TargetKilobytes: 13},
		{Mode: "scale-100", Operation: "event delivered", Clients: 100, Operations: 10, Server: &cost{Micros: 6}, Delivery: &latency{1, 2, 3, 4}},
	}}
	for i := range r.Results {
		r.Results[i].price(5*time.Microsecond, 7*time.Microsecond)
	}
	return r
}

func TestCostsAreInUnitsOfTheMeanWrite(t *testing.T) {
	r := sample().Results[0]
	if r.Server.W != 2 || r.Redis.W != 1.5 || r.Server.missed() || !r.Redis.missed() {
		t.Errorf("server %+v, Redis %+v", r.Server, r.Redis)
	}
}

func TestTableMarksMissedTargets(t *testing.T) {
	var out bytes.Buffer
	if err := sample().table(&out); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{" 1.5 !", " 2 ", "14 (13) !"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("there is no %q in\n%s", text, out.String())
		}
	}
}

func TestFaultsAreAnError(t *testing.T) {
	r := sample()
	if err := r.faults(); err != nil {
		t.Errorf("without faults: %v", err)
	}
	r.Results[2].Doubled = 3
	if err := r.faults(); err == nil || !strings.Contains(err.Error(), "scale-100: 0 events lost, 3 doubled") {
		t.Errorf("got %v", err)
	}
}

func TestChartIsWellFormed(t *testing.T) {
	for name, r := range map[string]report{"empty": {}, "sample": sample()} {
		file := filepath.Join(t.TempDir(), "results.json")
		if err := r.save(file); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := run(t.Context(), []string{"-chart", file}, &out); err != nil {
			t.Fatal(err)
		}
		bars := countBars(t, name, out.Bytes())
		if want := map[string]int{"empty": 0, "sample": 4}[name]; bars != want {
			t.Errorf("%s: %d bars, want %d:\n%s", name, bars, want, out.String())
		}
	}
}

func countBars(t *testing.T, name string, svg []byte) (bars int) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return bars
		}
		if err != nil {
			t.Fatalf("%s: %v:\n%s", name, err, svg)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			for _, a := range e.Attr {
				if a.Name.Local == "class" && a.Value != "track" {
					bars++
				}
			}
		}
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-mode", "nothing"}, {"-clients", "-1"}, {"-nodes", "0"}, {"heartbeat"}, {"-chart", "/nonexistent"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q are taken", args)
		}
	}
	modes, err := chosenModes(settings{modes: "fanout,idle", clients: 100, rooms: 4, rate: 7, seconds: 2})
	if err != nil || len(modes) != 4 {
		t.Fatalf("got %d modes, %v", len(modes), err)
	}
	if one, err := chosenModes(settings{modes: "storm"}); err != nil || len(one) != 1 || one[0].name != "storm" {
		t.Errorf("a whole name gives %d modes, %v", len(one), err)
	}
	paced := modes[1]
	if paced.name != "fanout-paced" || paced.perRoom != 25 || paced.rate != 7 || paced.window() != 2*time.Second {
		t.Errorf("got %+v", paced)
	}
}

// lastResults reads what a run has saved.
func lastResults(t *testing.T, file string) (r report) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRatiosAreMediansOfPairs(t *testing.T) {
	of := func(micros float64) result { return result{Server: &cost{Micros: micros}} }
	pairs := []pair{{of(10), of(5)}, {of(10), of(20)}, {of(10), of(8)}, {of(0), of(9)}, {result{}, of(9)}}
	for _, tc := range []struct {
		pairs []pair
		want  string
	}{{pairs, "0.80 (0.50–2.00)"}, {pairs[:2], "1.25 (0.50–2.00)"}, {pairs[3:], "–"}} {
		if got := ratioOf(tc.pairs, figures[0]); got != tc.want {
			t.Errorf("the ratio is %s, want %s", got, tc.want)
		}
	}
	if got := (&cost{CorePercent: 3}).perOperation(); got != 3 {
		t.Errorf("without operations the cost is %v", got)
	}
}
