package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// scriptPatience bounds the silence of a script. A flood of 60,000 events takes one 7 s where nothing else runs.
const scriptPatience = 90 * time.Second

// nodeProcess is a script of testdata/node that runs beside the test and talks with
// it in lines of JSON.
type nodeProcess struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // what it writes; closed at its end
}

// nodeScript starts a script with the packages of testdata/node. It ends with the test.
func nodeScript(t testing.TB, script string, args ...string) *nodeProcess {
	t.Helper()
	needNode(t)
	return lineProcess(t, exec.Command("node", append([]string{filepath.Join("testdata", "node", script)}, args...)...))
}

// lineProcess starts a program that talks with the test as a script does. It ends with the test.
func lineProcess(t testing.TB, cmd *exec.Cmd) *nodeProcess {
	t.Helper()
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &nodeProcess{t: t, cmd: cmd, in: in, lines: make(chan string, 1000)}
	go func() {
		defer close(p.lines)
		scan := bufio.NewScanner(out)
		scan.Buffer(nil, 16<<20) // the longest line
		for scan.Scan() {
			p.lines <- scan.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		for range p.lines {    // until the pipe is read to its end, as Wait asks for
		}
		_ = cmd.Wait()
	})
	return p
}

// needNode skips the test where Node.js or its packages are missing.
func needNode(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("node")
	need(t, err == nil, "Node.js 20 or newer in PATH")
	_, err = os.Stat(filepath.Join("testdata", "node", "node_modules"))
	need(t, err == nil, "the packages of testdata/node (npm ci --prefix testdata/node)")
}

// send writes the value as one line of JSON to the script.
func (p *nodeProcess) send(value any) {
	p.t.Helper()
	line, err := json.Marshal(value)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		p.t.Fatal(err)
	}
}

// next gives the next line that the script writes.
func (p *nodeProcess) next() string {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			p.t.Fatal("the script has ended")
		}
		return line
	case <-time.After(scriptPatience):
		p.t.Fatalf("the script says nothing for %v", scriptPatience)
	}
	return ""
}
