-- What lies at each store and context, as the sweep last counted it. Whoever looks at the queues counts live while
-- little lies there; hundreds of thousands of parked, refused or dead rows are counted once a minute, for everybody.
-- Only adds. No table that the intake writes is locked; `orders` is kept from its writers for about a second per million
-- orders; partitions of `interactions` that hold rows are left as they are.
create table backlogs (
  store      int  not null,
  context    text collate "C" not null,
  later      bigint not null,                      -- scheduled, `waiting` among them
  waiting    bigint not null,
  parked     bigint not null,
  refused    bigint not null,
  failing    bigint not null,                      -- delayed or unknown
  dead       bigint not null,
  counted_at timestamptz not null default now(),
  primary key (store, context)
);

-- `hub orders show` finds an order by VTEX's id too.
create index orders_vtex on orders (store, vtex_order_id) where vtex_order_id is not null;

-- The logs endpoint counts the failures of a day from the index alone. Partitions to come get it with their table; those
-- that hold rows already do without until their days are over: to build it there would keep every settle waiting.
create index interactions_failed on only interactions (store, at desc, id) include (status) where status <> 'success';
do $$
declare
  part regclass;
  own  text;
begin
  for part in select inhrelid::regclass from pg_inherits where inhparent = 'interactions'::regclass order by 1 loop
    if pg_relation_size(part) = 0 then
      own := (select relname from pg_class where oid = part) || '_failed';
      execute format('create index %I on %s (store, at desc, id) include (status) where status <> %L', own, part, 'success');
      execute format('alter index interactions_failed attach partition %I', own);
    end if;
  end loop;
end $$;
