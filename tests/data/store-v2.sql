-- A store of schema 2, as the taud of its time left it when it was killed with a run under way.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 1952544049;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE attempts (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        journal TEXT NOT NULL, position TEXT NOT NULL, process TEXT, outcome TEXT, ended TEXT,
        stopping TEXT, log_lines INTEGER NOT NULL, log_dropped INTEGER NOT NULL,
        PRIMARY KEY (run_id, attempt)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "attempts" VALUES('1m82xr5xtg3ayd',1,'1m82xr5xtg3ayd.1','{"journal":2177,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":26361,"started":"1457529","boot":"00000000-0000-4000-8000-000000000000","session":26361,"server":{"pid":26356,"started":"1457520","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394639.8053625,"mono":14575.349096002}',NULL,'{"t":"end","at":1795394639.81788,"mono":14575.361613207,"exit_code":0,"signal":null,"cpu_ms":13.552,"max_rss_bytes":19009536,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0);
INSERT INTO "attempts" VALUES('1m82xr5zcz8cgj',1,'1m82xr5zcz8cgj.1','{"journal":2559,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":26363,"started":"1457534","boot":"00000000-0000-4000-8000-000000000000","session":26363,"server":{"pid":26356,"started":"1457520","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394639.8559942,"mono":14575.399727985}',NULL,'{"t":"end","at":1795394639.8649852,"mono":14575.408719069,"exit_code":1,"signal":null,"cpu_ms":9.583,"max_rss_bytes":20234240,"stdout_bytes":0,"stderr_bytes":0}',NULL,1,0);
INSERT INTO "attempts" VALUES('1m82xr62r0h4de',1,'1m82xr62r0h4de.1','{"journal":2174,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":26368,"started":"1457544","boot":"00000000-0000-4000-8000-000000000000","session":26368,"server":{"pid":26356,"started":"1457520","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394639.9625092,"mono":14575.506242971}',NULL,'{"t":"end","at":1795394639.9720619,"mono":14575.515797245,"exit_code":0,"signal":null,"cpu_ms":10.166,"max_rss_bytes":19062784,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0);
INSERT INTO "attempts" VALUES('1m82xr649b1bdq',1,'1m82xr649b1bdq.1','{"journal":1084,"stdout":0,"stderr":0,"n":2,"bad":0}','{"t":"start","format":1,"pid":26370,"started":"1457550","boot":"00000000-0000-4000-8000-000000000000","session":26370,"server":{"pid":26356,"started":"1457520","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394640.0133011,"mono":14575.557035217}',NULL,'{"t":"end","at":1795394641.0663786,"mono":14576.610114396,"exit_code":1,"signal":null,"cpu_ms":10.481,"max_rss_bytes":19787776,"stdout_bytes":0,"stderr_bytes":0}','cancelled',0,0);
INSERT INTO "attempts" VALUES('1m82xr76d6jx7k',1,'1m82xr76d6jx7k.1','{"journal":349,"stdout":0,"stderr":0,"n":1,"bad":0}','{"t":"start","format":1,"pid":26375,"started":"1457555","boot":"00000000-0000-4000-8000-000000000000","session":26375,"server":{"pid":26356,"started":"1457520","boot":"00000000-0000-4000-8000-000000000000"},"at":1795394641.1033351,"mono":14576.647068914}',NULL,NULL,NULL,0,0);
CREATE TABLE events (
        seq INTEGER PRIMARY KEY, at TEXT NOT NULL, type TEXT NOT NULL,
        pipeline TEXT, run_id TEXT, data TEXT NOT NULL, actor TEXT NOT NULL
    ) STRICT;
INSERT INTO "events" VALUES(1,'2026-11-23T00:43:59.767Z','pipeline.deployed','orders',NULL,'{"version":1,"sha256":"7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008"}','ada');
INSERT INTO "events" VALUES(2,'2026-11-23T00:43:59.767Z','pipeline.deployed','waits',NULL,'{"version":1,"sha256":"7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008"}','ada');
INSERT INTO "events" VALUES(3,'2026-11-23T00:43:59.803Z','run.queued','orders','1m82xr5xtg3ayd','{"version":1,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(4,'2026-11-23T00:43:59.803Z','run.started','orders','1m82xr5xtg3ayd','{"attempt":1}','taud');
INSERT INTO "events" VALUES(5,'2026-11-23T00:43:59.819Z','run.finished','orders','1m82xr5xtg3ayd','{"status":"success","duration_ms":10.112}','taud');
INSERT INTO "events" VALUES(6,'2026-11-23T00:43:59.853Z','run.queued','orders','1m82xr5zcz8cgj','{"version":1,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(7,'2026-11-23T00:43:59.853Z','run.started','orders','1m82xr5zcz8cgj','{"attempt":1}','taud');
INSERT INTO "events" VALUES(8,'2026-11-23T00:43:59.866Z','run.finished','orders','1m82xr5zcz8cgj','{"status":"failed","duration_ms":6.933,"error":{"kind":"exception","type":"KeyError","message":"''amount''","fingerprint":"4e2fd1481b40"}}','taud');
INSERT INTO "events" VALUES(9,'2026-11-23T00:43:59.918Z','pipeline.deployed','orders',NULL,'{"version":2,"sha256":"df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0"}','ada');
INSERT INTO "events" VALUES(10,'2026-11-23T00:43:59.918Z','pipeline.deployed','waits',NULL,'{"version":2,"sha256":"df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0"}','ada');
INSERT INTO "events" VALUES(11,'2026-11-23T00:43:59.960Z','run.queued','orders','1m82xr62r0h4de','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(12,'2026-11-23T00:43:59.960Z','run.started','orders','1m82xr62r0h4de','{"attempt":1}','taud');
INSERT INTO "events" VALUES(13,'2026-11-23T00:43:59.973Z','run.finished','orders','1m82xr62r0h4de','{"status":"success","duration_ms":7.792}','taud');
INSERT INTO "events" VALUES(14,'2026-11-23T00:44:00.009Z','run.queued','waits','1m82xr649b1bdq','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(15,'2026-11-23T00:44:00.009Z','run.started','waits','1m82xr649b1bdq','{"attempt":1}','taud');
INSERT INTO "events" VALUES(16,'2026-11-23T00:44:01.067Z','run.finished','waits','1m82xr649b1bdq','{"status":"cancelled","duration_ms":1051.049,"error":{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","fingerprint":"91900bb99422"}}','taud');
INSERT INTO "events" VALUES(17,'2026-11-23T00:44:01.101Z','run.queued','waits','1m82xr76d6jx7k','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(18,'2026-11-23T00:44:01.101Z','run.started','waits','1m82xr76d6jx7k','{"attempt":1}','taud');
INSERT INTO "events" VALUES(19,'2026-11-23T00:44:02.137Z','run.queued','orders','1m82xr86sc31rd','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(20,'2026-11-23T00:44:02.186Z','run.queued','orders','1m82xr88a30t2c','{"version":2,"trigger":"manual"}','ada');
INSERT INTO "events" VALUES(21,'2026-11-23T00:44:02.231Z','run.finished','orders','1m82xr88a30t2c','{"status":"cancelled","duration_ms":null}','ada');
INSERT INTO "events" VALUES(22,'2026-11-23T00:44:02.265Z','pipeline.undeployed','waits',NULL,'{"cancelled_runs":0}','ada');
CREATE TABLE logs (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        n INTEGER NOT NULL, at TEXT NOT NULL, level TEXT NOT NULL, step TEXT, stream TEXT,
        message TEXT NOT NULL, fields TEXT,
        PRIMARY KEY (run_id, attempt, n)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "logs" VALUES('1m82xr5xtg3ayd',1,3,'2026-11-23T00:43:59.814Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82xr5xtg3ayd',1,13,'2026-11-23T00:43:59.815Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m82xr5xtg3ayd',1,14,'2026-11-23T00:43:59.815Z','warning',NULL,NULL,'slow',NULL);
INSERT INTO "logs" VALUES('1m82xr5zcz8cgj',1,3,'2026-11-23T00:43:59.861Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82xr62r0h4de',1,3,'2026-11-23T00:43:59.969Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82xr62r0h4de',1,13,'2026-11-23T00:43:59.970Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m82xr62r0h4de',1,14,'2026-11-23T00:43:59.970Z','warning',NULL,NULL,'slow',NULL);
CREATE TABLE observations (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        n INTEGER NOT NULL, kind TEXT NOT NULL, at TEXT NOT NULL, step TEXT, name TEXT NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (run_id, attempt, n)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "observations" VALUES('1m82xr5xtg3ayd',1,10,'check','2026-11-23T00:43:59.815Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m82xr5xtg3ayd',1,11,'metric','2026-11-23T00:43:59.815Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m82xr5xtg3ayd',1,12,'progress','2026-11-23T00:43:59.815Z',NULL,'','{"done":1,"total":2,"message":"half"}');
INSERT INTO "observations" VALUES('1m82xr5zcz8cgj',1,10,'check','2026-11-23T00:43:59.862Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m82xr5zcz8cgj',1,11,'metric','2026-11-23T00:43:59.862Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m82xr5zcz8cgj',1,12,'progress','2026-11-23T00:43:59.862Z',NULL,'','{"done":1,"total":2,"message":"half"}');
INSERT INTO "observations" VALUES('1m82xr62r0h4de',1,10,'check','2026-11-23T00:43:59.970Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m82xr62r0h4de',1,11,'metric','2026-11-23T00:43:59.970Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m82xr62r0h4de',1,12,'progress','2026-11-23T00:43:59.970Z',NULL,'','{"done":1,"total":2,"message":"half"}');
CREATE TABLE pipelines (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, deployed INTEGER NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "pipelines" VALUES('orders',2,1,'2026-11-23T00:43:59.767Z','2026-11-23T00:43:59.918Z');
INSERT INTO "pipelines" VALUES('waits',2,0,'2026-11-23T00:43:59.767Z','2026-11-23T00:43:59.918Z');
CREATE TABLE runs (
        run_id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
        "trigger" TEXT NOT NULL, attempt INTEGER NOT NULL, params TEXT NOT NULL, key TEXT,
        scheduled_for TEXT, queued_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
        duration_ms REAL, result TEXT, error TEXT,
        FOREIGN KEY (pipeline, version) REFERENCES versions (pipeline, version)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "runs" VALUES('1m82xr5xtg3ayd','orders',1,'success','manual',1,'{}','first',NULL,'2026-11-23T00:43:59.802Z','2026-11-23T00:43:59.805Z','2026-11-23T00:43:59.815Z',10.112,'{"total":12.5,"day":"é"}',NULL);
INSERT INTO "runs" VALUES('1m82xr5zcz8cgj','orders',1,'failed','manual',1,'{"bad":true}','6f17fbccc0d01ac5d719ab90',NULL,'2026-11-23T00:43:59.853Z','2026-11-23T00:43:59.855Z','2026-11-23T00:43:59.862Z',6.933,NULL,'{"kind":"exception","type":"KeyError","message":"''amount''","step":"sum","file":"orders.py","line":16,"code":"raise KeyError(\"amount\")","frames":[{"file":"orders.py","line":16,"function":"orders","code":"raise KeyError(\"amount\")","locals":{"bad":"True"},"user":true}],"cause":null,"fingerprint":"4e2fd1481b40","hint":null}');
INSERT INTO "runs" VALUES('1m82xr62r0h4de','orders',2,'success','manual',1,'{"bad":false}','cab782ed121bb128b9a6f370',NULL,'2026-11-23T00:43:59.960Z','2026-11-23T00:43:59.962Z','2026-11-23T00:43:59.970Z',7.792,'{"total":12.5,"day":"e"}',NULL);
INSERT INTO "runs" VALUES('1m82xr649b1bdq','waits',2,'cancelled','manual',1,'{}','81858989644d4be722f50cf5',NULL,'2026-11-23T00:44:00.009Z','2026-11-23T00:44:00.013Z','2026-11-23T00:44:01.064Z',1051.049,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","step":"waiting","file":"orders.py","line":25,"code":"time.sleep(600)","frames":[{"file":"orders.py","line":25,"function":"waits","code":"time.sleep(600)","locals":{},"user":true}],"cause":null,"fingerprint":"91900bb99422","hint":null}');
INSERT INTO "runs" VALUES('1m82xr76d6jx7k','waits',2,'running','manual',1,'{}','86618c62d1cab0e91a99ba18',NULL,'2026-11-23T00:44:01.101Z','2026-11-23T00:44:01.101Z',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82xr86sc31rd','orders',2,'queued','manual',1,'{}','queued',NULL,'2026-11-23T00:44:02.137Z',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82xr88a30t2c','orders',2,'cancelled','manual',1,'{}','6e07001d14e3e9355f98572e',NULL,'2026-11-23T00:44:02.186Z',NULL,'2026-11-23T00:44:02.231Z',NULL,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled before it began","step":null,"file":null,"line":null,"code":null,"frames":[],"cause":null,"fingerprint":"91900bb99422","hint":null}');
CREATE TABLE states (
        pipeline TEXT PRIMARY KEY REFERENCES pipelines (name), state TEXT NOT NULL,
        run_id TEXT NOT NULL, updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "states" VALUES('orders','{"runs":2}','1m82xr62r0h4de','2026-11-23T00:43:59.973Z');
CREATE TABLE steps (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        step INTEGER NOT NULL, parent INTEGER, name TEXT NOT NULL, path TEXT NOT NULL, status TEXT NOT NULL,
        started_at TEXT NOT NULL, duration_ms REAL, rows_in INTEGER, rows_out INTEGER, error TEXT,
        n INTEGER NOT NULL, finished_n INTEGER, finished_at TEXT, columns TEXT,
        PRIMARY KEY (run_id, attempt, step)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "steps" VALUES('1m82xr5xtg3ayd',1,1,NULL,'extract','extract','success','2026-11-23T00:43:59.814Z',0.051,NULL,2,NULL,1,5,'2026-11-23T00:43:59.814Z',NULL);
INSERT INTO "steps" VALUES('1m82xr5xtg3ayd',1,2,1,'page 1','extract/page 1','success','2026-11-23T00:43:59.814Z',0.031,NULL,NULL,NULL,2,4,'2026-11-23T00:43:59.814Z',NULL);
INSERT INTO "steps" VALUES('1m82xr5xtg3ayd',1,3,NULL,'transform','transform','success','2026-11-23T00:43:59.814Z',0.076,1,1,NULL,6,9,'2026-11-23T00:43:59.814Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82xr5xtg3ayd',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T00:43:59.814Z',0.05,1,1,NULL,7,8,'2026-11-23T00:43:59.814Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82xr5zcz8cgj',1,1,NULL,'extract','extract','success','2026-11-23T00:43:59.861Z',0.041,NULL,2,NULL,1,5,'2026-11-23T00:43:59.861Z',NULL);
INSERT INTO "steps" VALUES('1m82xr5zcz8cgj',1,2,1,'page 1','extract/page 1','success','2026-11-23T00:43:59.861Z',0.023,NULL,NULL,NULL,2,4,'2026-11-23T00:43:59.861Z',NULL);
INSERT INTO "steps" VALUES('1m82xr5zcz8cgj',1,3,NULL,'transform','transform','success','2026-11-23T00:43:59.862Z',0.055,1,1,NULL,6,9,'2026-11-23T00:43:59.862Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82xr5zcz8cgj',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T00:43:59.862Z',0.037,1,1,NULL,7,8,'2026-11-23T00:43:59.862Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82xr5zcz8cgj',1,5,NULL,'sum','sum','failed','2026-11-23T00:43:59.862Z',0.001,NULL,NULL,'{"type":"KeyError","message":"''amount''"}',13,14,'2026-11-23T00:43:59.862Z',NULL);
INSERT INTO "steps" VALUES('1m82xr62r0h4de',1,1,NULL,'extract','extract','success','2026-11-23T00:43:59.969Z',0.041,NULL,2,NULL,1,5,'2026-11-23T00:43:59.969Z',NULL);
INSERT INTO "steps" VALUES('1m82xr62r0h4de',1,2,1,'page 1','extract/page 1','success','2026-11-23T00:43:59.969Z',0.024,NULL,NULL,NULL,2,4,'2026-11-23T00:43:59.969Z',NULL);
INSERT INTO "steps" VALUES('1m82xr62r0h4de',1,3,NULL,'transform','transform','success','2026-11-23T00:43:59.969Z',0.057,1,1,NULL,6,9,'2026-11-23T00:43:59.969Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82xr62r0h4de',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T00:43:59.969Z',0.038,1,1,NULL,7,8,'2026-11-23T00:43:59.969Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82xr649b1bdq',1,1,NULL,'waiting','waiting','cancelled','2026-11-23T00:44:00.020Z',1043.092,NULL,NULL,'{"type":"Stopped","message":"asked to stop"}',1,2,'2026-11-23T00:44:01.063Z',NULL);
INSERT INTO "steps" VALUES('1m82xr76d6jx7k',1,1,NULL,'waiting','waiting','running','2026-11-23T00:44:01.113Z',NULL,NULL,NULL,NULL,1,NULL,NULL,NULL);
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
INSERT INTO "versions" VALUES('orders',1,'7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"schedule":"0 6 * * *","every":null,"timezone":"Europe/London","timeout":null,"retries":0,"retry_delay":0.0,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"after":[],"params":{"type":"object","properties":{"bad":{"type":"boolean","default":false}},"required":[],"additionalProperties":false},"environment":null}','2026-11-23T00:43:59.767Z','ada');
INSERT INTO "versions" VALUES('orders',2,'df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"schedule":"0 6 * * *","every":null,"timezone":"Europe/London","timeout":null,"retries":0,"retry_delay":0.0,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"after":[],"params":{"type":"object","properties":{"bad":{"type":"boolean","default":false}},"required":[],"additionalProperties":false},"environment":null}','2026-11-23T00:43:59.918Z','ada');
INSERT INTO "versions" VALUES('waits',1,'7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008','orders.py','waits','{"function":"waits","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"after":[],"params":{"type":"object"},"environment":null}','2026-11-23T00:43:59.767Z','ada');
INSERT INTO "versions" VALUES('waits',2,'df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0','orders.py','waits','{"function":"waits","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"after":[],"params":{"type":"object"},"environment":null}','2026-11-23T00:43:59.918Z','ada');
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
