-- Whoever asks the logs endpoint for errors finds them without passing every success of the day.
create index interactions_failing on interactions (store, at desc, id) where status <> 'success';
