-- An order is its events; the row is where it is found and the lock under which it changes.
CREATE TABLE orders (
    owner_id   bigint NOT NULL,
    id         uuid NOT NULL,
    saga_id    text NOT NULL,
    state      text NOT NULL,
    version    bigint NOT NULL,
    total      bigint NOT NULL,
    currency   text NOT NULL,
    line_count integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (owner_id, id),
    UNIQUE (owner_id, saga_id)
);
CREATE INDEX orders_by_state ON orders (owner_id, state, id);
SELECT titan.protect('orders');

CREATE TABLE order_events (
    owner_id bigint NOT NULL,
    id       uuid NOT NULL,
    order_id uuid NOT NULL,
    version  bigint NOT NULL,
    type     text NOT NULL,
    data     jsonb NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (owner_id, id),
    UNIQUE (owner_id, order_id, version),
    FOREIGN KEY (owner_id, order_id) REFERENCES orders (owner_id, id)
);
SELECT titan.protect('order_events');
