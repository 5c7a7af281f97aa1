package main

import (
	"context"
	"errors"
	"time"
)

// trial is one mode against servers of its own.
type trial struct {
	settings settings
	mode     mode
	dir      string // for files of the processes
}

// run measures w before and after, with nothing else at work. An attack has no costs.
func (t trial) run(ctx context.Context) (result, error) {
	if t.mode.attack != nil {
		return t.mode.attempt(ctx, t)
	}
	before, err := measureFloor(ctx, t.settings.floorRounds)
	if err != nil {
		return result{}, err
	}
	r, err := t.mode.attempt(ctx, t)
	if err != nil {
		return r, err
	}
	after, err := measureFloor(ctx, t.settings.floorRounds)
	if err != nil {
		return r, err
	}
	r.price(before, after)
	return r, nil
}

func attempt(ctx context.Context, t trial) (result, error) {
	var s site
	defer s.close()
	if err := s.open(ctx, t); err != nil {
		return result{}, err
	}
	resident, err := s.meter.residentBytes()
	if err != nil {
		return result{}, err
	}
	l := newLoad(t.mode, &s.meter)
	err = errors.Join(l.run(ctx, s.nodes), l.close())
	if err != nil {
		return result{}, err
	}
	return t.result(l, &s, resident), nil
}

// run is the whole life of the clients but their end.
func (l *load) run(ctx context.Context, nodes []string) error {
	if err := l.connect(ctx, nodes); err != nil {
		return err
	}
	if !l.mode.outside {
		if err := l.joinAll(ctx); err != nil {
			return err
		}
	}
	if err := l.mode.drive(ctx, l); err != nil {
		return err
	}
	if err := l.settle(ctx); err != nil {
		return err
	}
	l.found = l.faults() // before the first one leaves
	select {
	case err := <-l.broken:
		return err
	default:
		return nil
	}
}

// result is without costs yet.
func (t trial) result(l *load, s *site, residentBefore int64) result {
	m := l.measured
	done := tally{
		answers: m.to.done.answers - m.from.done.answers,
		joins:   m.to.done.joins - m.from.done.joins,
		events:  m.to.done.events - m.from.done.events,
	}
	f := l.found
	r := result{
		Mode: t.mode.name, Operation: t.mode.operation, Clients: t.mode.clients, Rooms: len(l.rooms), Nodes: len(s.nodes),
		Seconds: round(m.to.at.Sub(m.from.at).Seconds(), 4), Operations: t.mode.count(l, done), Delivered: done.events,
		Answer: m.answer, Delivery: m.delivery,
		Lost: f.lost, Doubled: f.doubled, Disordered: f.disordered, Refused: l.refused.Load(),
	}
	r.PerSecond = round(float64(r.Operations)/r.Seconds, 3)
	if len(s.meter.servers) > 0 {
		r.Server = newCost(m.to.server-m.from.server, r, t.mode.target.server)
		r.KilobytesPerConnection = round(float64(m.resident-residentBefore)/1024/float64(t.mode.clients), 3)
		r.TargetKilobytes = t.mode.target.kilobytes
	}
	if len(s.meter.redis) > 0 {
		r.Redis = newCost(m.to.redis-m.from.redis, r, t.mode.target.redis)
	}
	return r
}

func newCost(used time.Duration, r result, target float64) *cost {
	c := &cost{CorePercent: round(100*used.Seconds()/r.Seconds, 3), TargetW: target}
	if r.Operations > 0 {
		c.Micros = float64(used.Nanoseconds()) / 1e3 / float64(r.Operations)
	}
	return c
}
