package main

import (
	"fmt"
	"strings"

	"postern/catalog"
	"postern/client"
)

// writeWay prints which way the client uses, since when and why, and what it knows of the others.
func writeWay(line func(name string, value any), status client.Status) {
	if status.Way == "" {
		return
	}
	line("way", fmt.Sprintf("%s, since %s: %s", status.Way, stamp(status.WaySince), status.WayWhy))
	if status.LooksFor != "" {
		text := status.LooksFor + ", to return inside; not looked yet"
		if !status.Looked.IsZero() {
			text = fmt.Sprintf("%s, to return inside; last %s: %s", status.LooksFor, stamp(status.Looked), status.NotInside)
		}
		line("looks for", text)
	}
	switch {
	case len(status.Gateways) > 0:
		line("knows gateways", fmt.Sprintf("%s, from the site %s", strings.Join(status.Gateways, ", "), stamp(status.GatewaysHeard)))
	case status.Way == client.WayInternet:
	case status.GatewaysHeard.IsZero():
		line("knows gateways", fmt.Sprintf("none yet, so there is no way in from outside (`postern code %s`)", catalog.RoamNoGateway))
	default:
		line("knows gateways", fmt.Sprintf("none: the site named none %s, so there is no way in from outside (`postern code %s`)", stamp(status.GatewaysHeard), catalog.RoamNoGateway))
	}
}
