package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"postern/gateway"
	"postern/mp"
)

// routeView is one line of the table for scripts.
type routeView struct {
	Role      string   `json:"role"`
	Methods   []string `json:"methods"`
	Path      string   `json:"path"`
	Listeners []string `json:"listeners,omitempty"`
	Proofs    []string `json:"proofs"`
	Ceiling   string   `json:"ceiling,omitempty"`
	Body      int64    `json:"body_bytes"`
	Note      string   `json:"note,omitempty"`
}

func newRoutes(s *session) *cobra.Command {
	c := &cobra.Command{
		Use: "routes", Short: "Print every address of gateway and management point with the proofs that it accepts", Args: cobra.NoArgs,
		Example: "  postern routes\n  postern routes --json | jq -r '.[] | select(.role == \"gateway\") | .path'",
		Long:    "Prints the very tables by which requests are admitted. What is not in them is refused, and no setting elsewhere adds a proof.",
		RunE: func(*cobra.Command, []string) error {
			views := routeViews()
			return s.print(views, func(w io.Writer) {
				table(w, "ROLE\tLISTENERS\tMETHODS\tPATH\tPROOF (any one)\tLEVEL AT MOST\tBODY", func(row func(...any)) {
					for _, v := range views {
						row(v.Role, cmp.Or(strings.Join(v.Listeners, ","), "https"), strings.Join(v.Methods, ","), v.Path, strings.Join(v.Proofs, ", "), cmp.Or(v.Ceiling, "-"), v.Body)
					}
				})
			})
		},
	}
	c.Flags().BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}

func routeViews() (views []routeView) {
	for _, r := range gateway.Routes() {
		for _, path := range r.Paths() {
			views = append(views, routeView{Role: "gateway", Methods: r.Methods, Path: path, Proofs: []string{r.Proof.String()}, Body: r.Body})
		}
	}
	for _, r := range mp.Routes() {
		v := routeView{Role: "mp", Methods: r.Methods, Path: r.Path, Ceiling: r.Ceiling.String(), Body: r.Body, Note: r.Note}
		for _, l := range r.Listeners {
			v.Listeners = append(v.Listeners, fmt.Sprint(l))
		}
		for _, p := range r.Proofs {
			v.Proofs = append(v.Proofs, string(p))
		}
		views = append(views, v)
	}
	return views
}
