package main

import (
	"context"

	"github.com/spf13/cobra"

	"postern/client"
)

func newClientRotateKey(s *session, f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate-key",
		Short: "Give this device a new key; it stays the same device",
		Long: `Makes new keys. The key that the site knows names its successor, the site takes it in one step and refuses the former one from then on, and the device gets
its tokens anew. The client id and the approval stay.

It may be stopped at any moment: both keys are kept until the site is known to have taken the new one, and the device finds out by itself which one that
is. Run it again to finish. A device that is known by a certificate of the company renews that certificate instead, and over plain HTTP no key is changed.`,
		Example: `  postern client rotate-key
  postern client rotate-key --json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.with(s, c.Context(), func(ctx context.Context, agent *client.Agent) error {
				if err := agent.RotateKey(ctx); err != nil {
					return err
				}
				return s.printStatus(agent)
			})
		},
	}
}
