-- The answers to mutations, so that a repeated request is answered and not executed again.
CREATE TABLE idempotency_keys (
    owner_id     bigint NOT NULL,
    key          text NOT NULL,
    method       text NOT NULL,
    request_hash bytea NOT NULL,
    response     bytea,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner_id, key)
);
SELECT titan.protect('idempotency_keys');
