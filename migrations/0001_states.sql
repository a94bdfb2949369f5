-- The truth of one cell: who sells where, what was asked, what was answered, what is known.
-- Runs inside the hub's own schema (search_path is set by the runner). Needs PostgreSQL 14 or newer.
-- Keys are collated "C": PostgreSQL then locks rows in the very order in which the hub sorts them.

-- ---------------------------------------------------------------- stores
create table stores (
  id            int generated always as identity primary key,
  slug          text not null unique,              -- acme-mkt: names the queues
  account       text not null,                     -- VTEX account, lower case
  affiliate     text not null,                     -- three consonants
  sales_channel int  not null,
  marketplace   text not null,                     -- file in hub/marketplaces/, or another registered adapter
  token_digest  bytea not null unique,             -- sha256 of the unguessable token in the store's URLs
  status        text not null default 'active',    -- active | paused | removed
  settings      jsonb not null default '{}',       -- urls, pricing, inventory, defaults, looks: see hub/stores.py
  created_at    timestamptz not null default now(),
  changed_at    timestamptz not null default now()
);
create sequence registry_version;                  -- bumped by every change: processes re-read when it moves

create table credentials (
  store    int  not null references stores on delete cascade,
  side     text not null,                          -- vtex | marketplace | hub (the URL token itself)
  version  int  not null,                          -- newer ones open the gates that older ones shut
  secret   bytea not null,                         -- encrypted; the key is never in the database
  saved_at timestamptz not null default now(),
  primary key (store, side, version)
);

-- ---------------------------------------------------------------- what came in
create table notices (
  id          uuid not null,                       -- made at the door: draining a spool twice stores it once
  received_at timestamptz not null default now(),
  store       int,                                 -- null: token of nobody (never stored today), kept for quarantine
  kind        text not null,                       -- notification | event | result
  fate        text not null,                       -- accepted | ignored | quarantined
  key         text collate "C",                    -- order id of a result or event, else null
  body        text not null,                       -- raw; text, because jsonb refuses \u0000
  primary key (id, received_at)
) partition by range (received_at);
create table notices_default partition of notices default;
create index notices_results on notices (store, key, received_at) where kind = 'result';

-- ---------------------------------------------------------------- the states table
create table states (
  store         int  not null,
  context       text collate "C" not null,
  key           text collate "C" not null,
  work          "char" not null default 'i',       -- i at rest, p pending, h held by a claim, s due at due_at
  asked         bigint not null default 0,         -- demands so far; repeats that change nothing do not count
  answered      bigint not null default 0,         -- demands answered; asked > answered = somebody waits
  claimed       bigint,                            -- what the running claim, or the awaited ticket, will answer
  claim         bigint,                            -- who holds it, while work = 'h'
  asked_by      xid8,                              -- transaction of the last new demand: tells enqueue what it added
  urgency       smallint not null default 1,       -- smaller first; see hub.model.Urgency
  heard         bool not null default false,       -- VTEX announced a change since the last final answer
  looks         smallint not null default 0,       -- second looks (done) or read-backs (unknown) so far
  attempts      smallint not null default 0,       -- failures in a row
  status        text not null default 'new',       -- new done waiting parked refused delayed unknown dead
  code          text,                              -- catalogue code of the last ending
  pending_since timestamptz,                       -- oldest unanswered demand
  dirty_since   timestamptz,                       -- first demand during the hold
  due_at        timestamptz,                       -- while work = 's'
  answered_at   timestamptz,                       -- last ending
  primary key (store, context, key)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);
create index states_pending on states (store, context, urgency, pending_since) where work = 'p';
create index states_due     on states (due_at) where work = 's';
create index states_dead    on states (store, context, key) where status = 'dead';
create index states_failing on states (store, status, key) where status in ('refused', 'parked', 'delayed', 'unknown');

-- What is remembered beside a row; its own table because it is wide and changes less often.
create table answers (
  store        int  not null,
  context      text collate "C" not null,
  key          text collate "C" not null,
  problems     jsonb not null default '[]',        -- of the last ending: what somebody must correct
  why          text,                               -- last failure, redacted
  ticket       text,                               -- what the marketplace will answer; lot:<id> for lots
  parked_on    text,                               -- mapping:<category> | publication:<sku> | approval:<key>
  input_hash   text,                               -- of what was refused: the same is not sent again
  reference    uuid,                               -- our own id of the write that was begun
  intent       jsonb,                              -- what we are about to write, committed before the call; while it
                                                    -- is here, `confirmed` is in doubt and nobody may rely on it
  intent_at    timestamptz,
  confirmed    jsonb,                              -- what the marketplace is known to show
  confirmed_at timestamptz,
  primary key (store, context, key)
) with (fillfactor = 80);
create index answers_parked on answers (store, parked_on) where parked_on is not null;

-- ---------------------------------------------------------------- claims and leases
create table workers (
  id         bigint generated always as identity primary key,
  name       text not null,                        -- host, pool, process id
  started_at timestamptz not null default now(),
  until      timestamptz not null                  -- heartbeat: one row per process, not one per key
);
create table claims (
  id         bigint generated always as identity primary key,
  worker     bigint not null,
  store      int  not null,
  context    text not null,
  started_at timestamptz not null default now(),
  until      timestamptz not null                  -- deadline of the claim
);
create index claims_until on claims (until);
create index claims_worker on claims (worker);
create table leases (                              -- law 2: one per (store, lane, key), by this key
  store int  not null,
  lane  text collate "C" not null,
  key   text collate "C" not null,
  claim bigint not null,
  primary key (store, lane, key)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
create index leases_claim on leases (claim);

create table gates (                               -- shut: this store and context may not work now
  store      int  not null,
  context    text collate "C" not null,            -- '*' for all
  side       text not null,                        -- vtex | marketplace | operator
  cause      text not null,                        -- operator | credentials | quota
  who        text not null,
  why        text not null,
  version    int  not null default 0,              -- of the credentials that were refused
  since      timestamptz not null default now(),
  reopens_at timestamptz,                          -- null: when somebody opens it; past: one key at a time may try
  primary key (store, context, side)
);

-- ---------------------------------------------------------------- conservation (law 6)
create table counters (                            -- one slot per process: intakes never queue for one row
  store       int  not null,
  context     text collate "C" not null,           -- '-' for notices
  source      text collate "C" not null,
  slot        smallint not null,
  received    bigint not null default 0,
  quarantined bigint not null default 0,
  ignored     bigint not null default 0,
  accepted    bigint not null default 0,
  requested   bigint not null default 0,
  coalesced   bigint not null default 0,
  enqueued    bigint not null default 0,
  finished    bigint not null default 0,
  primary key (store, context, source, slot)
) with (fillfactor = 50);

-- ---------------------------------------------------------------- what is known of the two sides
create table bindings (                            -- VTEX SKU <-> marketplace listing (vtex.md 8.1)
  store      int  not null,
  sku        text collate "C" not null,
  product    text not null default '',
  remote_id  text not null,
  link       text not null default '',
  state      text not null,                        -- published | deactivated
  bound_at   timestamptz not null default now(),
  changed_at timestamptz not null default now(),
  primary key (store, sku)
);

create table mappings (                            -- VTEX category -> marketplace category
  store      int  not null,
  category   text not null,
  remote     text not null,
  name       text not null default '',
  version    bigint not null,
  changed_at timestamptz not null default now(),
  primary key (store, category)
);
create sequence mapping_version;

create table lots (                                -- records that go in one call and are answered later
  id           bigint generated always as identity primary key,
  store        int  not null,
  kind         text not null,                      -- listing | offer
  state        text not null default 'building',   -- building | submitting | submitted | settled
  reference    uuid not null unique,               -- ours, committed before the submit
  ticket       text,                               -- theirs, committed after
  records      int not null default 0,
  bytes        bigint not null default 0,
  opened_at    timestamptz not null default now(),
  closed_at    timestamptz,
  submitted_at timestamptz,
  settled_at   timestamptz
);
create unique index lots_building on lots (store, kind) where state = 'building' and closed_at is null;
create index lots_open on lots (store, state) where state <> 'settled';
create table lot_records (
  lot     bigint not null references lots on delete cascade,
  line    int    not null,                         -- position in the lot, from 0
  context text collate "C" not null,
  key     text collate "C" not null,
  covers  text[] not null,                         -- contexts that this record answers
  record  jsonb  not null,
  body    bytea  not null,
  outcome jsonb,                                   -- null until settled
  primary key (lot, line)
);
create index lot_records_key on lot_records (lot, key);

create table orders (
  store           int  not null,
  order_id        text collate "C" not null,       -- the marketplace's
  state           text not null default 'seen',    -- hub.states.ORDER_STATES, in that order
  body            bytea,                           -- the order with personal data, encrypted
  vtex_order_id   text,
  operation_id    text,
  reference       uuid,
  sent_at         timestamptz,
  approved        bool not null default false,
  problems        jsonb not null default '[]',
  total           bigint,                          -- cents
  seen_at         timestamptz not null default now(),
  changed_at      timestamptz not null default now(),
  primary key (store, order_id)
);

create table cursors (
  store      int  not null,
  name       text not null,
  value      text not null,
  changed_at timestamptz not null default now(),
  primary key (store, name)
);

create table runs (                                -- loads, replays
  id          bigint generated always as identity primary key,
  store       int,                                 -- null: a replay over several stores
  kind        text not null,                       -- load | replay
  state       text not null default 'running',     -- running | done | cancelled | failed
  who         text not null,
  why         text not null default '',
  filter      jsonb not null default '{}',
  cursor      jsonb not null default '{}',
  totals      jsonb not null default '{}',
  started_at  timestamptz not null default now(),
  finished_at timestamptz
);
create unique index runs_one_load on runs (store) where kind = 'load' and state = 'running';
create unique index runs_one_replay on runs (kind) where kind = 'replay' and state = 'running';
create table run_keys (
  run     bigint not null references runs on delete cascade,
  context text collate "C" not null,
  key     text collate "C" not null,
  store   int    not null,
  asked   bigint not null default 0,               -- answered when the row's answered reaches it
  primary key (run, store, context, key)
);

-- ---------------------------------------------------------------- what happened
create table interactions (
  id          uuid not null default gen_random_uuid(),
  at          timestamptz not null default now(),
  store       int  not null,
  context     text collate "C" not null,
  key         text collate "C" not null,
  operation   text not null,                       -- vtex.md 15.2
  direction   text not null,
  code        text not null,
  status      text not null,                       -- success | error | warning | pending: by the code
  attempt     int  not null default 0,
  source      jsonb,
  translated  jsonb,
  destination jsonb,
  problems    jsonb not null default '[]',
  params      jsonb not null default '{}',         -- fill the message in any language
  primary key (id, at)
) partition by range (at);
create table interactions_default partition of interactions default;
create index interactions_day   on interactions (store, at desc, id);
create index interactions_story on interactions (store, key, at desc);

create table audit (                               -- what people did
  id     bigint generated always as identity primary key,
  at     timestamptz not null default now(),
  who    text not null,
  action text not null,
  store  int,
  detail jsonb not null default '{}'
);
