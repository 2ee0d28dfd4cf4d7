-- A store of schema 1, as the taud of its time left it when it was killed with a run under way.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 1952544049;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE attempts (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        journal TEXT NOT NULL, position TEXT NOT NULL, process TEXT, outcome TEXT, ended TEXT,
        stopping TEXT, log_lines INTEGER NOT NULL, log_dropped INTEGER NOT NULL,
        PRIMARY KEY (run_id, attempt)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "attempts" VALUES('1m82xr2sf9epr3',1,'1m82xr2sf9epr3.1','{"journal":1251,"stdout":0,"stderr":0,"n":7,"bad":0}','{"t":"start","format":1,"pid":26320,"started":"1457210","boot":"00000000-0000-4000-8000-000000000000","session":26320,"server":{"pid":26315,"started":"1457204","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394636.595215,"mono":14572.138949141}',NULL,'{"t":"end","at":1795394636.5990624,"mono":14572.142795838,"exit_code":0,"signal":null,"cpu_ms":4.626,"max_rss_bytes":16990208,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0);
INSERT INTO "attempts" VALUES('1m82xr2tmee4db',1,'1m82xr2tmee4db.1','{"journal":1612,"stdout":0,"stderr":0,"n":7,"bad":0}','{"t":"start","format":1,"pid":26322,"started":"1457213","boot":"00000000-0000-4000-8000-000000000000","session":26322,"server":{"pid":26315,"started":"1457204","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394636.6305418,"mono":14572.17427557}',NULL,'{"t":"end","at":1795394636.6341214,"mono":14572.177854498,"exit_code":1,"signal":null,"cpu_ms":4.489,"max_rss_bytes":17768448,"stdout_bytes":0,"stderr_bytes":0}',NULL,1,0);
INSERT INTO "attempts" VALUES('1m82xr2x1recs4',1,'1m82xr2x1recs4.1','{"journal":1249,"stdout":0,"stderr":0,"n":7,"bad":0}','{"t":"start","format":1,"pid":26327,"started":"1457221","boot":"00000000-0000-4000-8000-000000000000","session":26327,"server":{"pid":26315,"started":"1457204","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394636.7071126,"mono":14572.250846014}',NULL,'{"t":"end","at":1795394636.7103367,"mono":14572.254069982,"exit_code":0,"signal":null,"cpu_ms":5.498,"max_rss_bytes":17174528,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0);
INSERT INTO "attempts" VALUES('1m82xr2y3fa5t7',1,'1m82xr2y3fa5t7.1','{"journal":1054,"stdout":0,"stderr":0,"n":2,"bad":0}','{"t":"start","format":1,"pid":26329,"started":"1457225","boot":"00000000-0000-4000-8000-000000000000","session":26329,"server":{"pid":26315,"started":"1457204","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394636.7462037,"mono":14572.289937268}',NULL,'{"t":"end","at":1795394637.7748928,"mono":14573.318626176,"exit_code":1,"signal":null,"cpu_ms":5.516,"max_rss_bytes":17690624,"stdout_bytes":0,"stderr_bytes":0}','cancelled',0,0);
INSERT INTO "attempts" VALUES('1m82xr3zngqd0e',1,'1m82xr3zngqd0e.1','{"journal":347,"stdout":0,"stderr":0,"n":1,"bad":0}','{"t":"start","format":1,"pid":26334,"started":"1457228","boot":"00000000-0000-4000-8000-000000000000","session":26334,"server":{"pid":26315,"started":"1457204","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394637.815669,"mono":14573.359403054}',NULL,NULL,NULL,0,0);
CREATE TABLE events (
        seq INTEGER PRIMARY KEY, at TEXT NOT NULL, type TEXT NOT NULL,
        pipeline TEXT, run_id TEXT, data TEXT NOT NULL, actor TEXT NOT NULL
    ) STRICT;
INSERT INTO "events" VALUES(1,'2026-11-23T00:43:56.563Z','pipeline.deployed','orders',NULL,'{"version":1,"sha256":"51587be1731f76ea18f0d67ac96b31b3dd710f67d427c6d7bc98932755cd3af6"}','ada');
INSERT INTO "events" VALUES(2,'2026-11-23T00:43:56.563Z','pipeline.deployed','waits',NULL,'{"version":1,"sha256":"51587be1731f76ea18f0d67ac96b31b3dd710f67d427c6d7bc98932755cd3af6"}','ada');
INSERT INTO "events" VALUES(3,'2026-11-23T00:43:56.592Z','run.queued','orders','1m82xr2sf9epr3','{"version":1,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(4,'2026-11-23T00:43:56.592Z','run.started','orders','1m82xr2sf9epr3','{"attempt":1}','taud');
INSERT INTO "events" VALUES(5,'2026-11-23T00:43:56.600Z','run.finished','orders','1m82xr2sf9epr3','{"status":"success","duration_ms":2.397}','taud');
INSERT INTO "events" VALUES(6,'2026-11-23T00:43:56.628Z','run.queued','orders','1m82xr2tmee4db','{"version":1,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(7,'2026-11-23T00:43:56.629Z','run.started','orders','1m82xr2tmee4db','{"attempt":1}','taud');
INSERT INTO "events" VALUES(8,'2026-11-23T00:43:56.635Z','run.finished','orders','1m82xr2tmee4db','{"status":"failed","duration_ms":2.018,"error":{"kind":"exception","type":"KeyError","message":"''amount''","fingerprint":"4e2fd1481b40"}}','taud');
INSERT INTO "events" VALUES(9,'2026-11-23T00:43:56.673Z','pipeline.deployed','orders',NULL,'{"version":2,"sha256":"deb21cfbe92e39467c25bdc8d8a70120b9dbe53467d631b548f3e224e1f7ae2e"}','ada');
INSERT INTO "events" VALUES(10,'2026-11-23T00:43:56.673Z','pipeline.deployed','waits',NULL,'{"version":2,"sha256":"deb21cfbe92e39467c25bdc8d8a70120b9dbe53467d631b548f3e224e1f7ae2e"}','ada');
INSERT INTO "events" VALUES(11,'2026-11-23T00:43:56.705Z','run.queued','orders','1m82xr2x1recs4','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(12,'2026-11-23T00:43:56.705Z','run.started','orders','1m82xr2x1recs4','{"attempt":1}','taud');
INSERT INTO "events" VALUES(13,'2026-11-23T00:43:56.711Z','run.finished','orders','1m82xr2x1recs4','{"status":"success","duration_ms":1.809}','taud');
INSERT INTO "events" VALUES(14,'2026-11-23T00:43:56.739Z','run.queued','waits','1m82xr2y3fa5t7','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(15,'2026-11-23T00:43:56.739Z','run.started','waits','1m82xr2y3fa5t7','{"attempt":1}','taud');
INSERT INTO "events" VALUES(16,'2026-11-23T00:43:57.775Z','run.finished','waits','1m82xr2y3fa5t7','{"status":"cancelled","duration_ms":1026.596,"error":{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","fingerprint":"91900bb99422"}}','taud');
INSERT INTO "events" VALUES(17,'2026-11-23T00:43:57.814Z','run.queued','waits','1m82xr3zngqd0e','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(18,'2026-11-23T00:43:57.814Z','run.started','waits','1m82xr3zngqd0e','{"attempt":1}','taud');
INSERT INTO "events" VALUES(19,'2026-11-23T00:43:58.845Z','run.queued','orders','1m82xr4zx3nr0w','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(20,'2026-11-23T00:43:58.884Z','run.queued','orders','1m82xr5144a8hm','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(21,'2026-11-23T00:43:58.924Z','run.finished','orders','1m82xr5144a8hm','{"status":"cancelled","duration_ms":null}','ada');
INSERT INTO "events" VALUES(22,'2026-11-23T00:43:58.953Z','pipeline.undeployed','waits',NULL,'{"cancelled_runs":0}','ada');
CREATE TABLE logs (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        n INTEGER NOT NULL, at TEXT NOT NULL, level TEXT NOT NULL, step TEXT, stream TEXT,
        message TEXT NOT NULL, fields TEXT,
        PRIMARY KEY (run_id, attempt, n)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "logs" VALUES('1m82xr2sf9epr3',1,3,'2026-11-23T00:43:56.597Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82xr2sf9epr3',1,6,'2026-11-23T00:43:56.597Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m82xr2sf9epr3',1,7,'2026-11-23T00:43:56.597Z','warning',NULL,NULL,'slow',NULL);
INSERT INTO "logs" VALUES('1m82xr2tmee4db',1,3,'2026-11-23T00:43:56.631Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82xr2x1recs4',1,3,'2026-11-23T00:43:56.708Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82xr2x1recs4',1,6,'2026-11-23T00:43:56.708Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m82xr2x1recs4',1,7,'2026-11-23T00:43:56.708Z','warning',NULL,NULL,'slow',NULL);
CREATE TABLE pipelines (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, deployed INTEGER NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "pipelines" VALUES('orders',2,1,'2026-11-23T00:43:56.563Z','2026-11-23T00:43:56.673Z');
INSERT INTO "pipelines" VALUES('waits',2,0,'2026-11-23T00:43:56.563Z','2026-11-23T00:43:56.673Z');
CREATE TABLE runs (
        run_id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
        "trigger" TEXT NOT NULL, attempt INTEGER NOT NULL, params TEXT NOT NULL, key TEXT,
        scheduled_for TEXT, queued_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
        duration_ms REAL, result TEXT, error TEXT,
        FOREIGN KEY (pipeline, version) REFERENCES versions (pipeline, version)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "runs" VALUES('1m82xr2sf9epr3','orders',1,'success','manual',1,'{}','first',NULL,'2026-11-23T00:43:56.591Z','2026-11-23T00:43:56.595Z','2026-11-23T00:43:56.597Z',2.397,'{"total":12.5,"day":"é"}',NULL);
INSERT INTO "runs" VALUES('1m82xr2tmee4db','orders',1,'failed','manual',1,'{"bad":true}','8a614ba4780909dd8169bd7b',NULL,'2026-11-23T00:43:56.628Z','2026-11-23T00:43:56.630Z','2026-11-23T00:43:56.632Z',2.018,NULL,'{"kind":"exception","type":"KeyError","message":"''amount''","step":"sum","file":"orders.py","line":11,"code":"raise KeyError(\"amount\")","frames":[{"file":"orders.py","line":11,"function":"orders","code":"raise KeyError(\"amount\")","locals":{},"user":true}],"cause":null,"fingerprint":"4e2fd1481b40"}');
INSERT INTO "runs" VALUES('1m82xr2x1recs4','orders',2,'success','manual',1,'{"bad":false}','70984299da154185896275e5',NULL,'2026-11-23T00:43:56.705Z','2026-11-23T00:43:56.707Z','2026-11-23T00:43:56.708Z',1.809,'{"total":12.5,"day":"e"}',NULL);
INSERT INTO "runs" VALUES('1m82xr2y3fa5t7','waits',2,'cancelled','manual',1,'{}','91f27e0b2029159c86b8a6ff',NULL,'2026-11-23T00:43:56.739Z','2026-11-23T00:43:56.746Z','2026-11-23T00:43:57.772Z',1026.596,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","step":"waiting","file":"orders.py","line":20,"code":"time.sleep(600)","frames":[{"file":"orders.py","line":20,"function":"waits","code":"time.sleep(600)","locals":{},"user":true}],"cause":null,"fingerprint":"91900bb99422"}');
INSERT INTO "runs" VALUES('1m82xr3zngqd0e','waits',2,'running','manual',1,'{}','77bc9b7fc8d754046d67b25b',NULL,'2026-11-23T00:43:57.814Z','2026-11-23T00:43:57.814Z',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82xr4zx3nr0w','orders',2,'queued','manual',1,'{}','queued',NULL,'2026-11-23T00:43:58.845Z',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82xr5144a8hm','orders',2,'cancelled','manual',1,'{}','1e9bc33072924c2a0ba55fc3',NULL,'2026-11-23T00:43:58.884Z',NULL,'2026-11-23T00:43:58.924Z',NULL,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled before it began","step":null,"file":null,"line":null,"code":null,"frames":[],"cause":null,"fingerprint":"91900bb99422"}');
CREATE TABLE steps (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        step INTEGER NOT NULL, parent INTEGER, name TEXT NOT NULL, path TEXT NOT NULL, status TEXT NOT NULL,
        started_at TEXT NOT NULL, duration_ms REAL, rows_in INTEGER, rows_out INTEGER, error TEXT,
        n INTEGER NOT NULL, finished_n INTEGER, finished_at TEXT,
        PRIMARY KEY (run_id, attempt, step)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "steps" VALUES('1m82xr2sf9epr3',1,1,NULL,'extract','extract','success','2026-11-23T00:43:56.597Z',0.056,NULL,2,NULL,1,5,'2026-11-23T00:43:56.597Z');
INSERT INTO "steps" VALUES('1m82xr2sf9epr3',1,2,1,'page 1','extract/page 1','success','2026-11-23T00:43:56.597Z',0.04,NULL,NULL,NULL,2,4,'2026-11-23T00:43:56.597Z');
INSERT INTO "steps" VALUES('1m82xr2tmee4db',1,1,NULL,'extract','extract','success','2026-11-23T00:43:56.631Z',0.059,NULL,2,NULL,1,5,'2026-11-23T00:43:56.631Z');
INSERT INTO "steps" VALUES('1m82xr2tmee4db',1,2,1,'page 1','extract/page 1','success','2026-11-23T00:43:56.631Z',0.039,NULL,NULL,NULL,2,4,'2026-11-23T00:43:56.631Z');
INSERT INTO "steps" VALUES('1m82xr2tmee4db',1,3,NULL,'sum','sum','failed','2026-11-23T00:43:56.631Z',0.001,NULL,NULL,'{"type":"KeyError","message":"''amount''"}',6,7,'2026-11-23T00:43:56.632Z');
INSERT INTO "steps" VALUES('1m82xr2x1recs4',1,1,NULL,'extract','extract','success','2026-11-23T00:43:56.708Z',0.047,NULL,2,NULL,1,5,'2026-11-23T00:43:56.708Z');
INSERT INTO "steps" VALUES('1m82xr2x1recs4',1,2,1,'page 1','extract/page 1','success','2026-11-23T00:43:56.708Z',0.03,NULL,NULL,NULL,2,4,'2026-11-23T00:43:56.708Z');
INSERT INTO "steps" VALUES('1m82xr2y3fa5t7',1,1,NULL,'waiting','waiting','cancelled','2026-11-23T00:43:56.747Z',1024.156,NULL,NULL,'{"type":"Stopped","message":"asked to stop"}',1,2,'2026-11-23T00:43:57.772Z');
INSERT INTO "steps" VALUES('1m82xr3zngqd0e',1,1,NULL,'waiting','waiting','running','2026-11-23T00:43:57.816Z',NULL,NULL,NULL,NULL,1,NULL,NULL);
CREATE TABLE totals (status TEXT PRIMARY KEY, runs INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "totals" VALUES('cancelled',2);
INSERT INTO "totals" VALUES('failed',1);
INSERT INTO "totals" VALUES('lost',0);
INSERT INTO "totals" VALUES('queued',1);
INSERT INTO "totals" VALUES('retrying',0);
INSERT INTO "totals" VALUES('running',1);
INSERT INTO "totals" VALUES('success',2);
INSERT INTO "totals" VALUES('timed_out',0);
CREATE TABLE versions (
        pipeline TEXT NOT NULL REFERENCES pipelines (name), version INTEGER NOT NULL,
        sha256 TEXT NOT NULL, entry TEXT NOT NULL, function TEXT NOT NULL,
        options TEXT NOT NULL, deployed_at TEXT NOT NULL, actor TEXT NOT NULL,
        PRIMARY KEY (pipeline, version)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "versions" VALUES('orders',1,'51587be1731f76ea18f0d67ac96b31b3dd710f67d427c6d7bc98932755cd3af6','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"params":{"type":"object"}}','2026-11-23T00:43:56.563Z','ada');
INSERT INTO "versions" VALUES('orders',2,'deb21cfbe92e39467c25bdc8d8a70120b9dbe53467d631b548f3e224e1f7ae2e','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"params":{"type":"object"}}','2026-11-23T00:43:56.673Z','ada');
INSERT INTO "versions" VALUES('waits',1,'51587be1731f76ea18f0d67ac96b31b3dd710f67d427c6d7bc98932755cd3af6','orders.py','waits','{"function":"waits","description":"","tags":[],"params":{"type":"object"}}','2026-11-23T00:43:56.563Z','ada');
INSERT INTO "versions" VALUES('waits',2,'deb21cfbe92e39467c25bdc8d8a70120b9dbe53467d631b548f3e224e1f7ae2e','orders.py','waits','{"function":"waits","description":"","tags":[],"params":{"type":"object"}}','2026-11-23T00:43:56.673Z','ada');
CREATE INDEX runs_of_pipeline ON runs (pipeline, run_id);
CREATE INDEX runs_by_status ON runs (pipeline, status, run_id);
CREATE UNIQUE INDEX runs_by_key ON runs (pipeline, key) WHERE key IS NOT NULL;
CREATE INDEX runs_queued ON runs (run_id) WHERE status = 'queued';
CREATE INDEX runs_live ON runs (run_id) WHERE status IN ('running', 'retrying');
CREATE INDEX runs_broken ON runs (finished_at, run_id) WHERE status IN ('failed', 'timed_out', 'lost');
CREATE INDEX events_of_run ON events (run_id, seq) WHERE run_id IS NOT NULL;
CREATE TRIGGER run_added AFTER INSERT ON runs BEGIN
        UPDATE totals SET runs = runs + 1 WHERE status = new.status;
    END;
CREATE TRIGGER run_moved AFTER UPDATE OF status ON runs WHEN old.status <> new.status BEGIN
        UPDATE totals SET runs = runs - 1 WHERE status = old.status;
        UPDATE totals SET runs = runs + 1 WHERE status = new.status;
    END;
CREATE TRIGGER run_removed AFTER DELETE ON runs BEGIN
        UPDATE totals SET runs = runs - 1 WHERE status = old.status;
    END;
COMMIT;
