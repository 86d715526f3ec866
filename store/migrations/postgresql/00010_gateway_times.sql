-- +goose Up

-- Of gateways from before 00009 it is not known when they confirmed or were given a certificate: that is the zero time, not 1970.
UPDATE gateways SET acknowledged_at = -62135596800000000 WHERE acknowledged_at = 0;
UPDATE gateways SET certified = -62135596800000000 WHERE certified = 0;
