-- A write that its lease did not outlast may have come last: what an attempt that began before this says is shown is not.
alter table answers add column doubted_at timestamptz;
