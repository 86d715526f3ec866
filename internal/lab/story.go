package lab

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"postern/catalog"
	"postern/site"
)

// Story is told on a running lab.
type Story struct {
	Name  string
	About string
	Tools []Tool // what the machine must have beside this program
	tell  func(context.Context, *Lab) error

	// prepare starts what the story needs beside the hierarchy, before it, and says so in the options; nil: nothing.
	prepare func(context.Context, *Options) (stop func(), err error)
}

// Tool is a program that a story runs, with the line that installs it.
type Tool struct{ Name, Install string }

// Ready reports which tool is missing and how to install it (catalogue code ToolMissing).
func (s Story) Ready() error {
	for _, tool := range s.Tools {
		if _, err := findProgram(tool.Name); err != nil {
			return catalog.Errorf(catalog.ToolMissing, "story %s needs %s; install it with: %s", s.Name, tool.Name, tool.Install)
		}
	}
	return nil
}

// findProgram looks where daemons are, too: /usr/sbin is not in everybody's PATH.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// Stories lists them; enrol is the default.
func Stories() []Story {
	return []Story{
		{Name: "enrol", About: "a device on the internet enrols with a bulk registration token and talks to its management point", tell: tellEnrol},
		{Name: "kerberos", About: "inside the network, a computer of a child domain proves itself by Kerberos and is approved; needs MIT's KDC", Tools: kdcTools(), tell: tellKerberos, prepare: startRealms},
		{Name: "entra", About: "a device of an onboarded tenant enrols from the internet with its cloud identity; the provider is a stand-in for Entra", tell: tellEntra, prepare: startIssuer},
		{Name: "pki", About: "a device proves itself with a certificate of the company, and another is refused whose certificate was revoked", tell: tellPKI, prepare: startCompany},
		{Name: "life", About: "a device's whole life: inside, outside through the gateway, renewal, block and refusal within seconds, a year asleep, return, home", tell: tellLife, prepare: moveClock},
	}
}

// Start starts the hierarchy with all that the story needs.
func (s Story) Start(ctx context.Context, options Options) (*Lab, error) {
	if s.prepare == nil {
		return Start(ctx, options)
	}
	stop, err := s.prepare(ctx, &options)
	if err != nil {
		return nil, err
	}
	l, err := Start(ctx, options)
	if err != nil {
		stop()
		return l, err
	}
	l.stops = append(l.stops, stop)
	return l, nil
}

// FindStory returns the story with that name.
func FindStory(name string) (Story, error) {
	stories := Stories()
	at := slices.IndexFunc(stories, func(s Story) bool { return s.Name == name })
	if at < 0 {
		var names []string
		for _, s := range stories {
			names = append(names, s.Name)
		}
		return Story{}, catalog.Errorf(catalog.InvalidArgument, "there is no story %q; the stories are: %s", name, strings.Join(names, ", "))
	}
	return stories[at], nil
}

// Tell tells a story on the lab.
func (l *Lab) Tell(ctx context.Context, s Story) error { return s.tell(ctx, l) }

// Steps returns everything that happened so far.
func (l *Lab) Steps() []Step { return l.trail.all() }

// FailedSteps counts the steps that did not go well.
func (l *Lab) FailedSteps() (n int) {
	for _, step := range l.Steps() {
		if !step.OK {
			n++
		}
	}
	return n
}

const welcomePolicy = `<Policy PolicyID="{00000000-0000-4000-8000-000000000001}" PolicyVersion="1.00" SchemaVersion="1.00" PolicyType="Machine"><PolicyRule PolicyRuleID="{1}"><PolicyAction PolicyActionType="WMI-XML"><instance class="Postern_Welcome"><property name="Text" type="8"><value>enrolled through the gateway</value></property></instance></PolicyAction></PolicyRule></Policy>`

// tellEnrol: S3's internet-based device.
func tellEnrol(ctx context.Context, l *Lab) error {
	err := l.trail.tell("administrator", func() (string, error) {
		p, err := l.Site().AddPolicy(ctx, site.NewPolicy{ID: "{00000000-0000-4000-8000-000000000001}", Category: "Welcome", Body: []byte(welcomePolicy), All: true, By: "lab"})
		return fmt.Sprintf("added policy %s for every device", p.ID), err
	})
	if err != nil {
		return err
	}
	var token string
	err = l.trail.tell("administrator", func() (string, error) {
		raw, kept, err := l.Site().NewBulkToken(ctx, site.NewBulk{MaxUses: 1, Label: "lab", By: "lab"})
		token = raw
		return fmt.Sprintf("made bulk registration token %s, good for one device until %s", kept.ID, kept.Expires.Format("2006-01-02 15:04")), err
	})
	if err != nil {
		return err
	}
	return l.Enrol(ctx, "laptop1", token)
}

// Enrol enrols a new device from "the internet", through the gateway.
func (l *Lab) Enrol(ctx context.Context, name, token string) error {
	agent, err := l.NewDevice(name)
	if err != nil {
		return err
	}
	defer agent.Close()
	if err := agent.Enrol(ctx, l.Setup(name, token)); err != nil {
		return fmt.Errorf("enrol %s: %w", name, err)
	}
	return nil
}
