package main

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"os"
	"strings"
)

// drawFile draws the results of a file.
func drawFile(name string, out io.Writer) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = io.WriteString(out, draw(r))
	return err
}

// Sizes of the drawing, in pixels.
const (
	chartWidth = 860
	barLeft    = 300 // where bars begin
	barRange   = 380 // length of the longest bar
	barHeight  = 14
	lineHeight = 26
	headHeight = 58 // of a panel, above its first bar
)

// The style follows the reader's choice of light or dark; the colours of the bars are legible on both.
const chartStyle = `<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.note { fill: #59636e; font-size: 12px; }
.met { fill: #2a78c8; }
.missed { fill: #c9622a; }
.track { fill: #d1d9e0; opacity: .45; }
.target { stroke: #1f2328; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note { fill: #9198a1; }
  .track { fill: #3d444d; }
  .target { stroke: #e6edf3; }
}
</style>
`

// bar is one measured figure.
type bar struct {
	label   string
	is      float64
	target  float64 // 0 = none
	reading string  // the figure in words
}

// panel is a group of bars on one scale.
type panel struct {
	title, note string
	bars        []bar
	full        float64 // value of the longest bar
}

// draw makes an SVG: what each operation costs against its target, and what an event costs as the connections grow.
func draw(r report) string {
	var body strings.Builder
	y := 0
	for _, p := range []panel{targetPanel(r), scalePanel(r)} {
		if len(p.bars) > 0 {
			y = p.draw(&body, y)
		}
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img">
<title>What one operation costs</title>
%s%s</svg>
`, chartWidth, y+8, chartStyle, body.String())
}

// targetPanel shows each figure that has a target as a share of it.
func targetPanel(r report) panel {
	p := panel{title: "Cost against target", full: 1.25,
		note: "the line is the target; w = CPU time of writing one ready frame to a socket, measured in the same run"}
	share := func(label string, is, target float64, unit string) {
		if is > 0 && target > 0 {
			p.bars = append(p.bars, bar{label, is / target, 1, fmt.Sprintf("%s of %s %s", orDash(is), orDash(target), unit)})
			p.full = max(p.full, is/target)
		}
	}
	for _, x := range r.Results {
		if x.Server != nil {
			share(x.Mode+", per "+x.Operation, x.Server.W, x.Server.TargetW, "w")
		}
		if x.Redis != nil {
			share(x.Mode+", in Redis", x.Redis.W, x.Redis.TargetW, "w")
		}
		share(x.Mode+", resident per connection", x.KilobytesPerConnection, x.TargetKilobytes, "KB")
	}
	return p
}

// scalePanel shows the server's cost per event for each number of connections.
func scalePanel(r report) panel {
	p := panel{title: "CPU of the server per event delivered, as connections grow", note: "same rate of updates per connection, rooms of the same size"}
	for _, x := range r.Results {
		if strings.HasPrefix(x.Mode, "scale-") && x.Server != nil {
			p.bars = append(p.bars, bar{label: fmt.Sprintf("%d connections", x.Clients), is: x.Server.W,
				reading: fmt.Sprintf("%s w (%s µs)", orDash(x.Server.W), orDash(x.Server.Micros))})
			p.full = max(p.full, x.Server.W)
		}
	}
	return p
}

// draw appends the panel at a height, and returns where it ends.
func (p panel) draw(b *strings.Builder, y int) int {
	fmt.Fprintf(b, "<text class=\"title\" x=\"12\" y=\"%d\">%s</text>\n", y+24, html.EscapeString(p.title))
	fmt.Fprintf(b, "<text class=\"note\" x=\"12\" y=\"%d\">%s</text>\n", y+43, html.EscapeString(p.note))
	y += headHeight
	for _, x := range p.bars {
		p.drawBar(b, x, y)
		y += lineHeight
	}
	return y
}

func (p panel) drawBar(b *strings.Builder, x bar, y int) {
	length := func(v float64) float64 { return barRange * v / p.full }
	class := "met"
	if x.target > 0 && x.is > x.target {
		class = "missed"
	}
	middle := y + barHeight - 3
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", barLeft-10, middle, html.EscapeString(x.label))
	fmt.Fprintf(b, "<rect class=\"track\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"3\"/>\n", barLeft, y, barRange, barHeight)
	fmt.Fprintf(b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"3\"/>\n", class, barLeft, y, length(x.is), barHeight)
	if x.target > 0 {
		at := barLeft + length(x.target)
		fmt.Fprintf(b, "<line class=\"target\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", at, at, y-3, y+barHeight+3)
	}
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\">%s</text>\n", barLeft+barRange+12, middle, html.EscapeString(x.reading))
}
