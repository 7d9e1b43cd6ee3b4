// How late is a goroutine that ticks, while a thousand others read files, look up names and start processes? `ticker` in Go.
//
// Run: GOMAXPROCS=2 go run ./ticker all FILE 1000 1000 5
// (what the others do, the file that they read, how many they are, microseconds between two ticks, seconds)
package main

import (
	"encoding/json"
	"log"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Row is what the program prints.
type Row struct {
	P50Us         float64 `json:"p50_us"`
	P99Us         float64 `json:"p99_us"`
	MaxUs         float64 `json:"max_us"`
	WorkPerSecond float64 `json:"work_per_second"`
}

func main() {
	kind, file := os.Args[1], os.Args[2]
	crowd, period, length := number(3), time.Duration(number(4))*time.Microsecond, time.Duration(number(5)*1e9)
	var done atomic.Int64
	var begun sync.WaitGroup
	begun.Add(int(crowd))
	for index := range int(crowd) {
		work := workOf(kind, index, file)
		go func() {
			begun.Done()
			for {
				if err := work(); err != nil {
					log.Fatal(err)
				}
				done.Add(1)
			}
		}()
	}
	begun.Wait()
	before, began := done.Load(), time.Now()
	lateness := tick(period, length)
	perSecond := float64(done.Load()-before) / time.Since(began).Seconds()
	slices.Sort(lateness)
	at := func(share float64) float64 {
		return float64(lateness[int(share*float64(len(lateness)-1))]) / 1e3
	}
	row := Row{P50Us: at(0.5), P99Us: at(0.99), MaxUs: at(1), WorkPerSecond: perSecond}
	if err := json.NewEncoder(os.Stdout).Encode(row); err != nil {
		log.Fatal(err)
	}
}

func number(index int) float64 {
	value, err := strconv.ParseFloat(os.Args[index], 64)
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func workOf(kind string, index int, file string) func() error {
	kinds := []func() error{
		func() error { _, err := os.ReadFile(file); return err },
		func() error { _, err := net.LookupHost("localhost"); return err },
		func() error { return exec.Command("/bin/true").Run() },
	}
	switch kind {
	case "files":
		return kinds[0]
	case "names":
		return kinds[1]
	case "children":
		return kinds[2]
	}
	return kinds[index%len(kinds)]
}

// Ticks that are missed because one is late are left out, but they count: as late as they would have been.
func tick(period, length time.Duration) []time.Duration {
	var lateness []time.Duration
	began := time.Now()
	for due := began.Add(period); due.Sub(began) <= length; {
		time.Sleep(time.Until(due))
		late := max(time.Since(due), 0)
		lateness = append(lateness, late)
		for missed := late - period; missed >= period; missed -= period {
			lateness = append(lateness, missed)
		}
		due = due.Add(period * (late/period + 1))
	}
	return lateness
}
