-- Events leave in the order of `seq`, a batch for each topic: one index finds the topics that have events, and the first
-- events of each, however long the others' queues are.
CREATE INDEX outbox_by_topic ON outbox (topic, seq);
-- Rows live for moments, so the table is mostly dead rows between two vacuums: a polling publisher reads over them.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
                        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000);
