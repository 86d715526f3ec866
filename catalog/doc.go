// Package catalog holds everything that can go wrong in Postern, as data: one
// table of codes with what is seen, where, why, what to do and how to know that
// it helped. The servers, the analyzer, the console, the documentation and the
// log explainer read the same table.
//
// Start from [Errorf] when something fails that a peer or a person can meet, and
// from [Lookup] when a code must be explained. [Public] and [Problem] make the
// text that may leave the process; what stays in our own log is [Error.Err].
//
// The table is data/<area>.yaml; `go generate ./catalog` (or `go run ./catalog/gen`)
// writes one Go file with the constants of each area, and docs/errors.md. A code
// is never reused for something else.
//
// The package is not for errors that only a programmer can meet: those are plain
// wrapped errors.
package catalog
