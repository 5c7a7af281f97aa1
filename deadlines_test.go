package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d deadlines
		first := d.next()
		<-time.After(deadlineStep - 1)
		if d.next() != first {
			t.Error("two requests within the step have not the same context")
		}
		<-time.After(1)
		second := d.next()
		if second == first {
			t.Error("a context is given out for longer than the step")
		}
		began := time.Now()
		<-first.Done()
		if took := time.Since(began); took != answerWithin-deadlineStep || !errors.Is(first.Err(), context.DeadlineExceeded) {
			t.Errorf("it ended after %v: %v", took, first.Err())
		}
		if second.Err() != nil {
			t.Error("the next one ended as well")
		}
		<-second.Done()
	})
}
