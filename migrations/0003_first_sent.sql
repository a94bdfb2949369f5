-- A result is an answer only to something that was sent: what was posted about an order before is nobody's (ORD-38).
alter table orders add column first_sent_at timestamptz;  -- when VTEX was first asked to create it
update orders set first_sent_at = seen_at where sent_at is not null;
