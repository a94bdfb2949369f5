-- Reconciliations: runs of kind 'reconcile' compare what is believed with what the marketplace and VTEX show.
alter table bindings add column seen_run bigint;           -- the last reconciliation that found the listing
alter table bindings add column absent_since timestamptz;  -- not found since: dropped when it is missed a second time
create index bindings_absent on bindings (store, sku) where absent_since is not null;
create unique index runs_one_reconcile on runs (store) where kind = 'reconcile' and state = 'running';
create index runs_newest on runs (store, kind, started_at);
