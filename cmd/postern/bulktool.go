package main

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"postern/catalog"
)

// bulkTools are the names under which the documents know the tool that makes bulk registration tokens (S3; product.md 2.3). A link to this program by one of
// them is that tool.
func bulkTools() []string {
	return []string{"bulkregistrationtokentool", "bulkregistrationtool"}
}

// calledAs puts the verb before the arguments of a program that was called by the name of the documented tool.
func calledAs(program string, arguments []string) []string {
	name := strings.ToLower(filepath.Base(strings.ReplaceAll(program, `\`, "/")))
	if !slices.Contains(bulkTools(), strings.TrimSuffix(name, ".exe")) {
		return arguments
	}
	if len(arguments) == 0 {
		arguments = []string{"/?"}
	}
	return append([]string{"token"}, arguments...)
}

// fromBulkTool rewrites a command line that has the options of the documented tool: `token /new /lifetime 60` is `token new --lifetime 60`. Options with dashes
// stay; other command lines stay as they are.
func fromBulkTool(arguments []string) ([]string, error) {
	if len(arguments) < 2 || arguments[0] != "token" || !slices.ContainsFunc(withoutValues(arguments[1:]), bulkOption) {
		return arguments, nil
	}
	var dashed []string
	verb, minutes := "", ""
	for rest := arguments[1:]; len(rest) > 0; rest = rest[1:] {
		option, value, given := strings.Cut(strings.ReplaceAll(strings.ToLower(rest[0]), "=", ":"), ":")
		switch {
		case strings.HasPrefix(rest[0], "-"):
			dashed = append(dashed, rest[0])
			if len(rest) > 1 && takesValue(rest[0]) {
				dashed, rest = append(dashed, rest[1]), rest[1:]
			}
		case option == "/?" && !given:
			return []string{"token", "--help"}, nil
		case (option == "/new" || option == "/list") && !given && (verb == "" || verb == option[1:]):
			verb = option[1:]
		case option == "/lifetime" && minutes == "":
			if !given && len(rest) > 1 {
				value, rest = rest[1], rest[1:]
			}
			if n, err := strconv.ParseUint(value, 10, 31); err != nil || n == 0 {
				return nil, catalog.Errorf(catalog.BulkToolOption, "/lifetime %q: want a number of minutes", value)
			}
			minutes = value
		default:
			return nil, catalog.Errorf(catalog.BulkToolOption, "%q", rest[0])
		}
	}
	switch {
	case minutes != "" && verb != "new":
		return nil, catalog.Errorf(catalog.BulkToolOption, "/lifetime goes with /new")
	case minutes != "":
		dashed = append(dashed, "--lifetime="+minutes)
	}
	return append([]string{"token", verb}, dashed...), nil
}

// bulkOption reports whether an argument is written in the tool's way. Paths begin with a slash too: those are values of options with dashes.
func bulkOption(argument string) bool { return strings.HasPrefix(argument, "/") }

// withoutValues leaves out the values of options with dashes.
func withoutValues(arguments []string) (left []string) {
	for i := 0; i < len(arguments); i++ {
		left = append(left, arguments[i])
		if takesValue(arguments[i]) {
			i++
		}
	}
	return left
}

// takesValue reports whether the next argument is the value of this option. That of --wait is behind an equals sign.
func takesValue(option string) bool {
	return strings.HasPrefix(option, "--") && !strings.Contains(option, "=") && !slices.Contains([]string{"--json", "--help", "--wait"}, option)
}
