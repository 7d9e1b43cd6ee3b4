// The client of net/rpc as a load: does what it is told by lines, and says what it found after each.
//
//	open CONNECTIONS       opens so many more, and makes one call on each
//	run IN_FLIGHT SECONDS  as many goroutines for each connection, each of which calls, waits and calls again
//
// Run: GOMAXPROCS=1 go run ./rpc_load 127.0.0.1:7000
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/rpc"
	"os"
	"slices"
	"sync"
	"time"
)

var payload = []byte("abcdefghijklmnopqrstuvwxyz012345")

type found struct {
	Requests int     `json:"requests"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	P999     float64 `json:"p999_us"`
}

func main() {
	var clients []*rpc.Client
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var connections, inFlight int
		var seconds float64
		said := found{}
		if _, err := fmt.Sscanf(lines.Text(), "open %d", &connections); err == nil {
			for range connections {
				clients = append(clients, open(os.Args[1]))
			}
		} else if _, err := fmt.Sscanf(lines.Text(), "run %d %f", &inFlight, &seconds); err == nil {
			said = run(clients, inFlight, time.Duration(seconds*float64(time.Second)))
		} else {
			log.Fatalf("no such line: %q", lines.Text())
		}
		if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
			log.Fatal(err)
		}
	}
}

func open(address string) *rpc.Client {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	// Closing resets it, so that its port is not held for a minute.
	if err := connection.(*net.TCPConn).SetLinger(0); err != nil {
		log.Fatal(err)
	}
	client := rpc.NewClient(connection)
	call(client)
	return client
}

func call(client *rpc.Client) {
	var answer []byte
	if err := client.Call("Echo.Echo", payload, &answer); err != nil {
		log.Fatal(err)
	}
	if len(answer) != len(payload) {
		log.Fatal("an answer's payload has another length than was sent")
	}
}

func run(clients []*rpc.Client, inFlight int, length time.Duration) found {
	began := time.Now()
	var all sync.WaitGroup
	latencies := make([][]time.Duration, len(clients)*inFlight)
	for task := range latencies {
		all.Add(1)
		go func() {
			defer all.Done()
			client := clients[task/inFlight]
			for asked := time.Now(); asked.Sub(began) < length; {
				call(client)
				now := time.Now()
				latencies[task] = append(latencies[task], now.Sub(asked))
				asked = now
			}
		}()
	}
	all.Wait()
	took := time.Since(began)
	sorted := slices.Concat(latencies...)
	slices.Sort(sorted)
	quantile := func(share float64) float64 {
		if len(sorted) == 0 {
			return 0
		}
		index := min(int(share*float64(len(sorted))), len(sorted)-1)
		return float64(sorted[index].Nanoseconds()) / 1e3
	}
	return found{len(sorted), took.Seconds(), quantile(0.5), quantile(0.99), quantile(0.999)}
}
