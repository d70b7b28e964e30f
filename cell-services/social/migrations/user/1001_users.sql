CREATE TABLE profiles (
    owner_id     bigint NOT NULL,
    id           uuid NOT NULL,
    display_name text NOT NULL,
    email        text NOT NULL,
    phone        text NOT NULL,
    locale       text NOT NULL,
    avatar_url   text NOT NULL,
    version      bigint NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    PRIMARY KEY (owner_id, id),
    UNIQUE (owner_id)
);
SELECT titan.protect('profiles');

CREATE TABLE addresses (
    owner_id    bigint NOT NULL,
    id          uuid NOT NULL,
    is_default  boolean NOT NULL,
    recipient   text NOT NULL,
    phone       text NOT NULL,
    line1       text NOT NULL,
    line2       text NOT NULL,
    city        text NOT NULL,
    region      text NOT NULL,
    postal_code text NOT NULL,
    country     text NOT NULL,
    PRIMARY KEY (owner_id, id)
);
-- At most one; that there is one where there are addresses is the service's part.
CREATE UNIQUE INDEX addresses_one_default ON addresses (owner_id) WHERE is_default;
SELECT titan.protect('addresses');

CREATE TABLE preferences (
    owner_id bigint NOT NULL,
    id       uuid NOT NULL,
    document jsonb NOT NULL,
    PRIMARY KEY (owner_id, id),
    UNIQUE (owner_id)
);
SELECT titan.protect('preferences');

CREATE TABLE blocks (
    owner_id   bigint NOT NULL,
    id         uuid NOT NULL,
    blocked_id bigint NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (owner_id, id),
    UNIQUE (owner_id, blocked_id)
);
SELECT titan.protect('blocks');

-- Who was erased, and when: all that is left of them.
CREATE TABLE erasures (
    owner_id  bigint NOT NULL,
    id        uuid NOT NULL,
    erased_at timestamptz NOT NULL,
    PRIMARY KEY (owner_id, id),
    UNIQUE (owner_id)
);
SELECT titan.protect('erasures');
