// Command raftscript runs interaction scripts on official raft and prints what they print.
//
// It reads scripts from standard input: a command per line, with its input on the lines after it up
// to an empty one; a line "===" ends a script. For each command it prints the output and a line
// "---", for each script a line "===".
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/rafttest"
)

// The field is there for raft's own tests only.
func setTimeout(node *raft.RawNode, timeout int) {
	inner := reflect.ValueOf(node).Elem().FieldByName("raft")
	field := reflect.NewAt(inner.Type(), unsafe.Pointer(inner.UnsafeAddr())).Elem().
		Elem().FieldByName("randomizedElectionTimeout")
	reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().SetInt(int64(timeout))
}

func newEnv() *rafttest.InteractionEnv {
	return rafttest.NewInteractionEnv(&rafttest.InteractionOpts{
		SetRandomizedElectionTimeout: setTimeout,
	})
}

func main() {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	env := newEnv()
	for lines.Scan() {
		line := lines.Text()
		if line == "===" {
			env = newEnv()
			fmt.Fprintln(out, "===")
			continue
		}
		var input []string
		for lines.Scan() && lines.Text() != "" {
			input = append(input, lines.Text())
		}
		printed, err := handle(env, line, strings.Join(input, "\n"))
		if err != nil {
			fmt.Fprintf(out, "PANIC %v\n", err)
		}
		fmt.Fprintf(out, "%s\n---\n", strings.TrimRight(printed, "\n"))
	}
}

func handle(env *rafttest.InteractionEnv, line, input string) (printed string, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%v", cause)
		}
	}()
	command, arguments, err := datadriven.ParseLine(line)
	if err != nil {
		return "", err
	}
	data := datadriven.TestData{Cmd: command, CmdArgs: arguments, Input: input}
	return env.Handle(&testing.T{}, data), nil
}
