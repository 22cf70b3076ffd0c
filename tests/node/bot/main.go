// Program bot is a trading bot that trades nothing: it keeps a diary of its own life, and does on
// command what bots do when things go wrong.
//
// As `bot` it runs; as `on-stop MODE` (or `bot ask PATH`, `bot connect HOST:PORT ...`,
// `bot forbidden`) it speaks to the running one or tries something in its container.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const own = "http://127.0.0.1:8080"

// configuration is what spec.runtimeConfig may ask for.
type configuration struct {
	CrashAfterMs int `json:"crashAfterMs"`
	ExitCode     int `json:"exitCode"`
	StopMs       int `json:"stopMs"`
	OnStopMs     int `json:"onStopMs"`
}

func main() {
	arguments := os.Args
	if filepath.Base(arguments[0]) == "on-stop" {
		arguments = []string{"bot", "ask", "/on-stop?mode=" + strings.Join(arguments[1:], " ")}
	}
	if len(arguments) < 2 {
		run()
		return
	}
	switch arguments[1] {
	case "ask":
		ask(arguments[2])
	case "connect":
		connect(arguments[2:])
	case "forbidden":
		forbidden()
	default:
		fmt.Fprintln(os.Stderr, "unknown command", arguments[1])
		os.Exit(2)
	}
}

func run() {
	asked := read()
	diary := open()
	diary.write("start", "")
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			diary.write("alive", "")
		}
	}()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM)
	serve(diary, asked)
	if asked.CrashAfterMs > 0 {
		time.AfterFunc(time.Duration(asked.CrashAfterMs)*time.Millisecond, func() {
			diary.end(asked.ExitCode)
		})
	}
	<-signals
	diary.write("term", "")
	time.Sleep(time.Duration(asked.StopMs) * time.Millisecond)
	diary.end(0)
}

func read() configuration {
	var asked configuration
	if text, err := os.ReadFile("/config/config.json"); err == nil {
		_ = json.Unmarshal(text, &asked)
	}
	return asked
}

func serve(diary *diary, asked configuration) {
	var unhealthy atomic.Bool
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if unhealthy.Load() {
			http.Error(w, "unhealthy", http.StatusInternalServerError)
		}
	})
	http.HandleFunc("/unhealthy", func(http.ResponseWriter, *http.Request) { unhealthy.Store(true) })
	http.HandleFunc("/on-stop", func(_ http.ResponseWriter, r *http.Request) {
		diary.write("on-stop", r.URL.Query().Get("mode"))
		time.Sleep(time.Duration(asked.OnStopMs) * time.Millisecond)
		diary.write("on-stop done", "")
	})
	http.HandleFunc("/crash", func(http.ResponseWriter, *http.Request) { diary.end(3) })
	http.HandleFunc("/eat", func(http.ResponseWriter, *http.Request) { go eat() })
	ports := os.Getenv("LISTEN")
	if ports == "" {
		ports = ":8080,:9090"
	}
	for _, port := range strings.Split(ports, ",") {
		listener, err := net.Listen("tcp", port)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		go func() { _ = http.Serve(listener, nil) }()
	}
}

func eat() {
	var eaten [][]byte
	for {
		piece := make([]byte, 1<<20)
		for i := range piece {
			piece[i] = 1
		}
		eaten = append(eaten, piece)
	}
}

func ask(path string) {
	answer, err := http.Get(own + path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = io.Copy(os.Stdout, answer.Body)
}

// connect tells of each address whether a connection can be made.
func connect(addresses []string) {
	results := make([]string, len(addresses))
	done := make(chan struct{})
	for i, address := range addresses {
		go func() {
			results[i] = try(address)
			done <- struct{}{}
		}()
	}
	for range addresses {
		<-done
	}
	for i, address := range addresses {
		fmt.Println(address, results[i])
	}
}

func try(address string) string {
	connection, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			return "timeout"
		}
		return strings.ReplaceAll(err.Error(), " ", "-")
	}
	connection.Close()
	return "open"
}

// diary is a file of this run's own: the kernel keeps what was written, however the run ends.
type diary struct{ file *os.File }

type line struct {
	Event string  `json:"event"`
	Text  string  `json:"text,omitempty"`
	Wall  float64 `json:"wall"`
	Mono  float64 `json:"mono"`
}

func open() *diary {
	folder := "/tmp/diary"
	_ = os.MkdirAll(folder, 0o755)
	earlier, _ := os.ReadDir(folder)
	file, err := os.Create(fmt.Sprintf("%s/%d", folder, len(earlier)))
	if err != nil {
		file = os.Stdout
	}
	return &diary{file}
}

func (d *diary) write(event, text string) {
	encoded, _ := json.Marshal(line{event, text, float64(time.Now().UnixNano()) / 1e9, monotonic()})
	_, _ = d.file.Write(append(encoded, '\n'))
	if event != "alive" {
		fmt.Println(string(encoded))
	}
}

// end writes the end, to the diary and to the termination message, and exits.
func (d *diary) end(code int) {
	now := float64(time.Now().UnixNano()) / 1e9
	_ = os.WriteFile("/dev/termination-log", []byte(fmt.Sprintf("ended %.3f code %d", now, code)), 0)
	d.write("end", fmt.Sprint(code))
	os.Exit(code)
}
