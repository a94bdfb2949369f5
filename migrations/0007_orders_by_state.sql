-- Only an index is added, and one dropped that another one makes superfluous: processes of versions before this one
-- neither name nor miss it. `orders` is kept from its writers for about a second per million orders.

-- `hub orders list --state` finds the few orders of a state without passing all the others of the store.
create index orders_state on orders (store, state, order_id);

-- Where every partition has the index of failures that carries the status too (0005), the narrower one of 0002 only
-- costs every failure an entry. Where one that holds rows has none, both stay.
do $$
begin
  if not exists (
    select from pg_inherits p where p.inhparent = 'interactions'::regclass and not exists (
      select from pg_inherits i join pg_index x on x.indexrelid = i.inhrelid
      where i.inhparent = 'interactions_failed'::regclass and x.indrelid = p.inhrelid and x.indisvalid)
  ) then
    drop index interactions_failing;
  end if;
end $$;
