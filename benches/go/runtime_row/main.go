// What does one kind of work take in Go? The same work as in runtime_work.rs, one processor (GOMAXPROCS=1), printed as
// nanoseconds or bytes.
//
// Run: GOMAXPROCS=1 go run ./runtime_row yield
package main

import (
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	batches    = 101
	yielders   = 100
	yields     = 500
	spawnBatch = 1_000
	roundTrips = 2_000
	parked     = 100_000
	captured   = 64
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "one argument is wanted: the row")
		os.Exit(2)
	}
	row, known := rows[os.Args[1]]
	if !known {
		fmt.Fprintln(os.Stderr, "no such row:", os.Args[1])
		os.Exit(2)
	}
	fmt.Println(row())
}

var rows = map[string]func() float64{
	"spawn-join":   func() float64 { return sample(spawnBatch, spawnJoin) },
	"yield":        func() float64 { return sample(yielders*yields, func() { yieldInTurn(runtime.Gosched) }) },
	"yield-deep":   func() float64 { return sample(yielders*yields, func() { yieldInTurn(yieldThreeDeep) }) },
	"channel":      func() float64 { return sample(roundTrips, func() { roundTrip(receive) }) },
	"channel-deep": func() float64 { return sample(roundTrips, func() { roundTrip(receiveThreeDeep) }) },
	"timer":        deadlineOnAWait,
	"memory":       func() float64 { bytes, _ := park(); return bytes },
	"park":         func() float64 { _, nanos := park(); return nanos },
}

func sample(operations int, batch func()) float64 {
	batch()
	return medianOf(func() float64 { return nanosOf(operations, batch) })
}

func medianOf(nanos func() float64) float64 {
	var all []float64
	for range batches {
		all = append(all, nanos())
	}
	sort.Float64s(all)
	return all[batches/2]
}

func nanosOf(operations int, batch func()) float64 {
	began := time.Now()
	batch()
	return float64(time.Since(began).Nanoseconds()) / float64(operations)
}

var sink atomic.Int64

// A WaitGroup for the whole batch: Go's own way to join, and cheaper than a channel each.
func spawnJoin() {
	var group sync.WaitGroup
	group.Add(spawnBatch)
	results := make([]int, spawnBatch)
	for value := range spawnBatch {
		go func() {
			results[value] = value
			group.Done()
		}()
	}
	group.Wait()
}

func yieldInTurn(giveWay func()) {
	var group sync.WaitGroup
	group.Add(yielders)
	for range yielders {
		go func() {
			for range yields {
				giveWay()
			}
			group.Done()
		}()
	}
	group.Wait()
}

//go:noinline
func yieldThreeDeep() { yieldTwoDeep() }

//go:noinline
func yieldTwoDeep() { yieldOneDeep() }

//go:noinline
func yieldOneDeep() { runtime.Gosched() }

func roundTrip(receive func(chan int) (int, bool)) {
	asks, answers := make(chan int, 1), make(chan int, 1)
	go func() {
		for {
			value, open := receive(asks)
			if !open {
				close(answers)
				return
			}
			answers <- value
		}
	}()
	for value := range roundTrips {
		asks <- value
		receive(answers)
	}
	close(asks)
	<-answers
}

func receive(values chan int) (int, bool) {
	value, open := <-values
	return value, open
}

//go:noinline
func receiveThreeDeep(values chan int) (int, bool) { return receiveTwoDeep(values) }

//go:noinline
func receiveTwoDeep(values chan int) (int, bool) { return receiveOneDeep(values) }

//go:noinline
func receiveOneDeep(values chan int) (int, bool) { return receive(values) }

// Half of the difference of a round trip, which holds two waits. The timers are reused, Go's cheapest way.
func deadlineOnAWait() float64 {
	plain := func() { roundTrip(receive) }
	timed := func() { timedRoundTrip() }
	plain()
	timed()
	return medianOf(func() float64 {
		less := nanosOf(2*roundTrips, plain)
		return nanosOf(2*roundTrips, timed) - less
	})
}

const far = time.Hour

func timedRoundTrip() {
	asks, answers := make(chan int, 1), make(chan int, 1)
	go func() {
		timer := time.NewTimer(far)
		for {
			value, open := receiveBefore(timer, asks)
			if !open {
				close(answers)
				return
			}
			answers <- value
		}
	}()
	timer := time.NewTimer(far)
	for value := range roundTrips {
		asks <- value
		receiveBefore(timer, answers)
	}
	close(asks)
	<-answers
}

func receiveBefore(timer *time.Timer, values chan int) (int, bool) {
	timer.Reset(far)
	select {
	case value, open := <-values:
		timer.Stop()
		return value, open
	case <-timer.C:
		panic("an hour has not passed")
	}
}

func park() (bytesEach, nanosEach float64) {
	before := memoryBytes()
	began := time.Now()
	released := make(chan struct{})
	var arrived atomic.Int64
	var group sync.WaitGroup
	group.Add(parked)
	for range parked {
		spawnParked(&arrived, released, &group)
	}
	for arrived.Load() < parked {
		runtime.Gosched()
	}
	took := time.Since(began)
	time.Sleep(200 * time.Millisecond)
	grown := memoryBytes() - before
	close(released)
	group.Wait()
	return float64(grown) / parked, float64(took.Nanoseconds()) / parked
}

func spawnParked(arrived *atomic.Int64, released chan struct{}, group *sync.WaitGroup) {
	var bytes [captured]byte
	bytes[0] = 7
	go func() {
		arrived.Add(1)
		<-released
		sink.Add(int64(bytes[0]))
		group.Done()
	}()
}

// Resident memory and page tables.
func memoryBytes() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	total := 0
	for line := range strings.Lines(string(status)) {
		words := strings.Fields(line)
		if words[0] == "VmRSS:" || words[0] == "VmPTE:" {
			kibibytes, err := strconv.Atoi(words[1])
			if err != nil {
				panic(err)
			}
			total += kibibytes << 10
		}
	}
	return total
}
