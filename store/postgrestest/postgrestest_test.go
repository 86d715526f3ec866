package postgrestest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// child tells the test binary that it is the child of TestServerDiesWithItsTest.
const child = "POSTERN_TEST_POSTGRES_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		s, err := New()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(s.folder)
		select {}
	}
	os.Exit(m.Run())
}

func TestDatabasesAreFresh(t *testing.T) {
	for range 2 {
		conn, err := pgx.Connect(t.Context(), Start(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), "create table t (n int)"); err != nil {
			t.Error(err)
		}
		conn.Close(t.Context())
	}
}

// TestServerDiesWithItsTest kills a test process: nothing of its server may be left.
func TestServerDiesWithItsTest(t *testing.T) {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), child+"=1")
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	folder := strings.TrimSpace(line)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(folder); os.IsNotExist(err) {
			return // the guard removes the folder after the server has ended
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", folder)
		}
	}
}
