// Package realms runs real Kerberos realms for the tests and for the lab: MIT's KDC, as plain processes on loopback, from the programs that
// Debian's packages install, with every file in one private folder and without root.
//
// [Start] gives two realms, A2003.VM.LOCAL and its child CHILD.A2003.VM.LOCAL, that trust each other as parent and child domain do, with the
// principals of seed S0: a management point, a cluster's service account, a computer of the child domain. A computer of the child domain gets
// its ticket for the parent's management point by referral: the client's file says nothing about which host is in which realm, the KDCs' files
// do. More realms ([Other]) stand for an external trust and for one that is reached through another realm.
//
// MIT's KDC knows neither accounts with several service names nor the whole PAC. What needs those runs on a Samba forest, in the files with the
// build tag ad.
//
// It is no way to run Kerberos: passwords stand in files, and the realms are gone when the program ends.
package realms
