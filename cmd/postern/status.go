package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// newStatus prints what a running role says of itself.
func newStatus(s *session) *cobra.Command {
	c := &cobra.Command{
		Use: "status --config FILE", Short: "Say how a running role is: its connections, its epoch of the site state, what protects its keys", Args: cobra.NoArgs,
		Long:    "Asks the role through its administration door. Exit status 1 when it is not well.",
		Example: "  postern status --config gateway/gateway.yaml\n  postern status --config connector/connector.yaml --json",
		RunE: func(c *cobra.Command, _ []string) error {
			door, _, err := s.door()
			if err != nil {
				return err
			}
			health, err := door.Health(c.Context())
			if err != nil {
				return err
			}
			err = s.print(health, func(w io.Writer) {
				fmt.Fprintf(w, "%s %s, up since %s: %s\n", health.Role, health.Name, stamp(health.Since), map[bool]string{true: "well", false: "not well"}[health.OK])
				for _, problem := range health.Problem {
					fmt.Fprintf(w, "  problem: %s\n", problem)
				}
				detail, err := json.MarshalIndent(health.Detail, "  ", "  ")
				if err == nil {
					fmt.Fprintf(w, "  %s\n", detail)
				}
			})
			if err != nil || health.OK {
				return err
			}
			return exitError{exitFailed}
		},
	}
	c.Flags().StringVar(&s.config, "config", "", "configuration file of the role")
	c.Flags().BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}

func newVersion(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: cobra.NoArgs, Example: "  postern version",
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(s.out, "postern", version())
			return err
		},
	}
}
