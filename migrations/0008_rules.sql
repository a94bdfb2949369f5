-- A store's rules changed: what is shown is compared with them once every worker knows them.
alter table stores add column rules_changed_at timestamptz;
