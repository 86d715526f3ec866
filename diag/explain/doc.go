// Package explain reads log files and says what is wrong: the first wrong thing, what followed from it, the lines that
// prove it, and what to do.
//
// Start with [Run]: paths in, a [Report] out. Files are recognised by their content, not by their names: both line
// formats of client and server components, W3C access logs, plain ccmsetup text and Postern's own JSON, in UTF-8 and
// UTF-16, alone, in folders, in zip archives and packed by gzip. What a line says is one table, symptoms.go; what it means is another,
// rules.go, over a timeline of all files; what ends it is in over.go, and whose affair it is in others.go; titles, causes and remedies
// are the catalogue's. Where the lines do not decide, the report has no verdict and says what was looked at.
//
// Log files come from strangers: everything read is bounded by [Limits], nothing in a line is obeyed, and tokens are
// left out of what is shown.
//
// The package asks no server anything and changes nothing; for that see package diag.
package explain
