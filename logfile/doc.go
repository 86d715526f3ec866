// Package logfile writes and reads the log files that administrators know, so that
// their own viewers open them: the two line formats of client and server components
// (protocol.md 8.1), the W3C access log, and beside them the same events as JSON.
//
// Start from [Folder]: it gives a [Log] for each component file, an [AccessLog] and a
// handler for log/slog, opens each file at its first line, and has the switch for
// verbose lines. [Read] goes the other way and yields records from any of the formats.
//
// Lines end in CR LF, as in the files of the original product. A full file is renamed
// from .log to .lo_ and begun again; one older generation is kept. What a line holds
// may come from a hostile peer: control characters, forged record ends and overlong
// text are made harmless while the line is written.
//
// The package does not decide what is said: the word-for-word lines live in the
// component that says them, in its log.go.
package logfile
