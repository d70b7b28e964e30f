-- Events on their way to Kafka, written in the transaction of their effect. Local to the data home: rows are
-- published and gone within moments, and do not move with their owner.
CREATE TABLE outbox (
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq         bigint GENERATED ALWAYS AS IDENTITY,
    owner_id    bigint NOT NULL,
    event_id    uuid NOT NULL,
    topic       text NOT NULL,
    payload     text NOT NULL,
    traceparent text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (xid, seq)
);
