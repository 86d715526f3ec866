package store

import (
	"fmt"
	"strconv"
	"strings"
)

// insert returns an insert statement for the columns, which are constants of this package, with placeholders $1, $2 and so on.
func insert(table string, columns ...string) string {
	places := make([]string, len(columns))
	for i := range columns {
		places[i] = fmt.Sprintf("$%d", i+1)
	}
	return "insert into " + table + " (" + strings.Join(columns, ", ") + ") values (" + strings.Join(places, ", ") + ")"
}

// insertNew returns an insert statement that does nothing when a unique value is taken.
func insertNew(table string, columns ...string) string {
	return insert(table, columns...) + " on conflict do nothing"
}

// upsert returns an insert-or-replace statement; the first keys columns are the primary key.
func upsert(table string, keys int, columns ...string) string {
	sets := make([]string, 0, len(columns))
	for _, column := range columns[keys:] {
		sets = append(sets, column+" = excluded."+column)
	}
	return insert(table, columns...) + " on conflict (" + strings.Join(columns[:keys], ", ") + ") do update set " + strings.Join(sets, ", ")
}

// selection returns "select a, b from table".
func selection(table string, columns ...string) string {
	return "select " + strings.Join(columns, ", ") + " from " + table
}

// where collects the conditions of a filter: constant fragments, with the values kept apart as arguments.
type where struct {
	parts []string
	args  []any
}

// and adds a condition in which each ? stands for the argument.
func (w *where) and(fragment string, arg any) {
	w.args = append(w.args, arg)
	w.parts = append(w.parts, strings.ReplaceAll(fragment, "?", fmt.Sprintf("$%d", len(w.args))))
}

// limit adds the last argument and returns the whole condition with the given order.
func (w *where) ordered(order string, limit int) string {
	text := ""
	if len(w.parts) > 0 {
		text = " where " + strings.Join(w.parts, " and ")
	}
	w.args = append(w.args, limitOf(limit))
	return fmt.Sprintf("%s order by %s limit $%d", text, order, len(w.args))
}

// anonymous replaces $1, $2, ... by ? where they stand in order, each once: SQLite then need not look up their names, which costs a tenth
// of a wide insert. Other queries stay as they are.
func anonymous(query string) string {
	text := query
	for n := 1; ; n++ {
		before, after, found := strings.Cut(text, "$")
		if !found {
			return text
		}
		rest, ok := strings.CutPrefix(after, strconv.Itoa(n))
		if !ok || rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			return query
		}
		text = before + "?" + rest
	}
}
