// Package role starts a role of the hierarchy from its configuration: what `postern serve` does for a user and the lab does on loopback.
//
// [StartManagementPoint], [StartGateway] and [StartConnector] each take a configuration that [Load] read and return a running role with its
// administration door. The acts that come before a role can start are here too: [InitSite], [InitGateway], [JoinConnector]. Rules live
// in the packages below; this one only joins them and owns the files.
package role
