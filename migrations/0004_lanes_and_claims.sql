-- A claim says itself which rows it holds, and the lane under which a row is held is a column with a unique key:
-- two index entries and a row less per key and claim than rows of `leases` took (bench/README.md, engine).

alter table states add column lane text collate "C";  -- while held and other contexts share the lane: law 2
create unique index states_lane on states (store, lane, key) where lane is not null;

alter table claims
  add column contexts text[],                      -- the rows of this claim; null: an older version's, see leases
  add column keys     text[];
alter table claims set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
                        autovacuum_vacuum_cost_delay = 0);

-- Versions before this one look at `leases` only. While both run on one database, the database keeps them off what
-- newer ones hold ...
create function hub_lease_respects_lanes() returns trigger language plpgsql as $$
begin
  perform from states s where s.store = new.store and s.lane = new.lane and s.key = new.key;
  if found then return null; end if;
  return new;
end $$;
create trigger leases_respect_lanes before insert on leases
  for each row execute function hub_lease_respects_lanes();

-- ... and frees the rows of a newer one's claim that an older sweep ends. Newer sessions say what they are.
create function hub_claim_frees_rows() returns trigger language plpgsql as $$
begin
  update states s set claim = null, lane = null, attempts = least(s.attempts + 1, 32000),
    claimed = case when s.status = 'waiting' then s.claimed end,
    work = case when s.status = 'dead' then 's' else 'p' end,
    due_at = case when s.status = 'dead' then now() + make_interval(secs => 600) end
  from unnest(old.contexts, old.keys) t(context, key)
  where s.store = old.store and s.context = t.context and s.key = t.key and s.claim = old.id;
  return old;
end $$;
create trigger claims_free_rows before delete on claims
  for each row when (old.keys is not null and current_setting('hub.claims', true) is distinct from 'rows')
  execute function hub_claim_frees_rows();
