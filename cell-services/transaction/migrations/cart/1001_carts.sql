-- A cart is one document: it is read and written whole, under one version.
CREATE TABLE carts (
    owner_id   bigint NOT NULL,
    id         uuid NOT NULL,
    version    bigint NOT NULL,
    lines      jsonb NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (owner_id, id),
    UNIQUE (owner_id)
);
SELECT titan.protect('carts');

-- Which guest carts were merged: the id is the guest cart's.
CREATE TABLE cart_merges (
    owner_id  bigint NOT NULL,
    id        uuid NOT NULL,
    merged_at timestamptz NOT NULL,
    PRIMARY KEY (owner_id, id)
);
SELECT titan.protect('cart_merges');
