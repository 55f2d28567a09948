-- The tables of a hub of schema 2.
CREATE TABLE facts (
	"key" VARCHAR(64) NOT NULL, 
	value BLOB NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE invites (
	invite VARCHAR(16) NOT NULL, 
	secret BLOB NOT NULL, 
	uses_left INTEGER NOT NULL, 
	expires BIGINT NOT NULL, 
	created BIGINT NOT NULL, 
	PRIMARY KEY (invite)
);
CREATE TABLE devices (
	device VARCHAR(64) NOT NULL, 
	public BLOB NOT NULL, 
	nickname VARCHAR(64) NOT NULL, 
	invite VARCHAR(16) NOT NULL, 
	joined BIGINT NOT NULL, 
	replay BLOB NOT NULL, 
	PRIMARY KEY (device)
);
CREATE TABLE rounds (
	round INTEGER NOT NULL, 
	start_release INTEGER NOT NULL, 
	seal_seed BLOB NOT NULL, 
	outcome VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	report TEXT NOT NULL, 
	draw BIGINT, 
	opened BIGINT DEFAULT '0' NOT NULL, 
	ended BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (round)
);
CREATE TABLE updates (
	update_id VARCHAR(64) NOT NULL, 
	round INTEGER NOT NULL, 
	device VARCHAR(64) NOT NULL, 
	transfer VARCHAR(32) NOT NULL, 
	tokens BIGINT NOT NULL, 
	norm FLOAT NOT NULL, 
	wire_bytes BIGINT NOT NULL, 
	fp32_bytes BIGINT NOT NULL, 
	accepted BIGINT NOT NULL, 
	start VARCHAR(64) DEFAULT '' NOT NULL, 
	merge INTEGER DEFAULT '0' NOT NULL, 
	state VARCHAR(16) DEFAULT 'merged' NOT NULL, 
	PRIMARY KEY (update_id), 
	CONSTRAINT one_update_a_device_a_round UNIQUE (round, device)
);
CREATE INDEX updates_by_transfer ON updates (transfer);
CREATE INDEX updates_of_a_merge ON updates (merge, state);
CREATE TABLE refusals (
	id INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	device VARCHAR(64) NOT NULL, 
	transfer VARCHAR(32) NOT NULL, 
	reason VARCHAR(64) NOT NULL, 
	message TEXT NOT NULL, 
	at BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX refusals_of_a_round ON refusals (round);
CREATE INDEX refusals_by_transfer ON refusals (transfer);
CREATE TABLE verdicts (
	candidate VARCHAR(64) NOT NULL, 
	device VARCHAR(64) NOT NULL, 
	round INTEGER NOT NULL, 
	"before" FLOAT NOT NULL, 
	"after" FLOAT NOT NULL, 
	targets BIGINT NOT NULL, 
	PRIMARY KEY (candidate, device)
);
CREATE TABLE releases (
	sha256 VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	parent VARCHAR(64) NOT NULL, 
	size BIGINT NOT NULL, 
	content_key BLOB NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	created BIGINT NOT NULL, 
	updates TEXT NOT NULL, 
	carry VARCHAR(64) DEFAULT '' NOT NULL, 
	kept INTEGER DEFAULT '1' NOT NULL, 
	PRIMARY KEY (sha256)
);
CREATE TABLE acts (
	id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	act VARCHAR(32) NOT NULL, 
	operator VARCHAR(64) NOT NULL, 
	details TEXT NOT NULL, 
	PRIMARY KEY (id)
);
