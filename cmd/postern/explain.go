package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"postern/diag/explain"
)

func newExplain(s *session) *cobra.Command {
	c := &cobra.Command{
		Use: "explain PATH...", Short: "Read log files and say what is wrong, what proves it and what to do",
		Long: `Reads log files and says what is wrong: the first wrong thing, the lines that prove it, what to do, and what followed from it.
Where the lines do not decide, it says that it does not know, and what it looked at. Logs of a ConfigMgr site serve as well as Postern's own; no server is asked and nothing is changed.

A PATH is a file, a folder with everything below it, a pattern, a zip archive, or - for standard input. Files are recognised by their content, not by their names:
CcmMessaging, ClientIDManagerStartup, LocationServices, ccmsetup, CCM_STS, MP_RegistrationManager, CMGService, SMS_CLOUD_PROXYCONNECTOR and the like, rotated ones too (.lo_),
access logs of the web server (W3C), and Postern's JSON logs; in UTF-8 or UTF-16. Give the logs of the device and of the servers together: one timeline is made of all.

The exit status is 0 whenever something could be read, whatever it says.`,
		Example: `  postern explain /var/log/postern                     everything below a folder
  postern explain LocationServices.log CCM_STS.log     what the device saw, and why
  postern explain 'C:\Windows\CCM\Logs\*.lo*'          a pattern, rotated files too
  postern explain logs-from-the-user.zip               an archive, read in place
  postern explain --json logs | jq -r .verdict.code    for a script; null is "don't know"
  postern explain - < u_ex260101.log                   standard input`,
		Args: func(_ *cobra.Command, paths []string) error {
			if len(paths) == 0 {
				return usageError{fmt.Errorf("name a log file, a folder, an archive, or - for standard input; see `postern explain --help`")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, paths []string) error {
			report, err := explain.Run(c.Context(), explain.Input{Paths: paths, Stdin: s.in})
			if err != nil {
				return err
			}
			return s.print(report, report.Write)
		},
	}
	c.Flags().BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}
