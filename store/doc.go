// Package store keeps a site's records in SQLite (one file, embedded) or PostgreSQL. [Open] chooses by the address and returns a
// [Store], which is a site.Store; both databases pass the suite in site/storetest.
//
// # Grouped commits
//
// A change is durable when [Store.Update] returns. So that this does not cost one disk sync each, all changes that wait while a commit
// is under way share the next one: a single writer takes everything from the queue, runs it in one transaction and commits once, at full
// durability. A change that gives up before it has written anything disturbs nobody. When one gives up after it has written, the
// transaction is rolled back and every change of the group runs again in a transaction of its own; a change may therefore run more than once.
//
// # Several processes
//
// On SQLite the write lock of the file orders the writers; on PostgreSQL an advisory lock that each writing transaction takes first does,
// because every change of trust continues one hash chain anyway. Nodes share that lock fairly, each with a whole group at a time.
//
// The package decides nothing about devices: that is package site. It never builds SQL from input: every statement is a constant, and
// filters are constant fragments with placeholders.
package store
