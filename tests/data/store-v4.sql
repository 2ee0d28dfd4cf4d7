-- A store of schema 4, as the taud of its time left it when it was killed with a run under way.
PRAGMA auto_vacuum = 2;
PRAGMA application_id = 1952544049;
PRAGMA user_version = 4;
BEGIN TRANSACTION;
CREATE TABLE attempts (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        journal TEXT NOT NULL, position TEXT NOT NULL, process TEXT, outcome TEXT, ended TEXT,
        stopping TEXT, log_lines INTEGER NOT NULL, log_dropped INTEGER NOT NULL, status TEXT, started_at TEXT, finished_at TEXT, duration_ms REAL, error TEXT,
        PRIMARY KEY (run_id, attempt)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "attempts" VALUES('1m82yqkmm4ahwk',1,'1m82yqkmm4ahwk.1','{"journal":2171,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":22230,"started":"1560506","boot":"00000000-0000-4000-8000-000000000000","session":22230,"server":{"pid":22225,"started":"1560488","boot":"00000000-0000-4000-8000-000000000000"},"at":1795395669.654453,"mono":15605.19818716}',NULL,'{"t":"end","at":1795395669.6776443,"mono":15605.221377502,"exit_code":0,"signal":null,"cpu_ms":11.002,"max_rss_bytes":19402752,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0,'success','2026-11-23T01:01:09.654Z','2026-11-23T01:01:09.671Z',16.971,NULL);
INSERT INTO "attempts" VALUES('1m82yqkrbwfaba',1,'1m82yqkrbwfaba.1','{"journal":2575,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":22233,"started":"1560519","boot":"00000000-0000-4000-8000-000000000000","session":22233,"server":{"pid":22225,"started":"1560488","boot":"00000000-0000-4000-8000-000000000000"},"at":1795395669.7779157,"mono":15605.321649707}',NULL,'{"t":"end","at":1795395669.7957659,"mono":15605.339498799,"exit_code":1,"signal":null,"cpu_ms":10.826,"max_rss_bytes":20627456,"stdout_bytes":0,"stderr_bytes":0}',NULL,1,0,'failed','2026-11-23T01:01:09.777Z','2026-11-23T01:01:09.793Z',15.99,'{"kind":"exception","type":"KeyError","message":"''amount''","step":"sum","file":"orders.py","line":16,"code":"raise KeyError(\"amount\")","frames":[{"file":"orders.py","line":16,"function":"orders","code":"raise KeyError(\"amount\")","locals":{"bad":"True"},"user":true}],"cause":null,"fingerprint":"4e2fd1481b40","hint":null}');
INSERT INTO "attempts" VALUES('1m82yqkzcyv5ht',1,'1m82yqkzcyv5ht.1','{"journal":2177,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":22237,"started":"1560543","boot":"00000000-0000-4000-8000-000000000000","session":22237,"server":{"pid":22225,"started":"1560488","boot":"00000000-0000-4000-8000-000000000000"},"at":1795395669.9981608,"mono":15605.54189467}',NULL,'{"t":"end","at":1795395670.0136175,"mono":15605.557350702,"exit_code":0,"signal":null,"cpu_ms":10.303,"max_rss_bytes":19439616,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0,'success','2026-11-23T01:01:09.998Z','2026-11-23T01:01:10.007Z',9.66,NULL);
INSERT INTO "attempts" VALUES('1m82yqm2a52kvs',1,'1m82yqm2a52kvs.1','{"journal":1095,"stdout":0,"stderr":0,"n":2,"bad":0}','{"t":"start","format":1,"pid":22239,"started":"1560554","boot":"00000000-0000-4000-8000-000000000000","session":22239,"server":{"pid":22225,"started":"1560488","boot":"00000000-0000-4000-8000-000000000000"},"at":1795395670.0984342,"mono":15605.642168077}',NULL,'{"t":"end","at":1795395670.1972694,"mono":15605.741002777,"exit_code":1,"signal":null,"cpu_ms":9.505,"max_rss_bytes":20381696,"stdout_bytes":0,"stderr_bytes":0}','cancelled',0,0,'cancelled','2026-11-23T01:01:10.098Z','2026-11-23T01:01:10.191Z',92.829,'{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","step":"waiting","file":"orders.py","line":25,"code":"time.sleep(600)","frames":[{"file":"orders.py","line":25,"function":"waits","code":"time.sleep(600)","locals":{},"user":true}],"cause":null,"fingerprint":"91900bb99422","hint":null}');
INSERT INTO "attempts" VALUES('1m82yqm7seesmt',1,'1m82yqm7seesmt.1','{"journal":349,"stdout":0,"stderr":0,"n":1,"bad":0}','{"t":"start","format":1,"pid":22243,"started":"1560564","boot":"00000000-0000-4000-8000-000000000000","session":22243,"server":{"pid":22225,"started":"1560488","boot":"00000000-0000-4000-8000-000000000000"},"at":1795395670.2716775,"mono":15605.815411327}',NULL,NULL,NULL,0,0,'running','2026-11-23T01:01:10.265Z',NULL,NULL,NULL);
CREATE TABLE chains (
        pipeline TEXT NOT NULL, upstream TEXT NOT NULL, run_id TEXT, PRIMARY KEY (pipeline, upstream)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "chains" VALUES('report','orders',NULL);
CREATE TABLE digests (
        cron TEXT NOT NULL, timezone TEXT NOT NULL, croniter TEXT NOT NULL, digest TEXT NOT NULL,
        PRIMARY KEY (cron, timezone)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "digests" VALUES('0 6 * * *','Europe/London','7.0.0','7a3c0f603ae6');
CREATE TABLE events (
        seq INTEGER PRIMARY KEY, at TEXT NOT NULL, type TEXT NOT NULL,
        pipeline TEXT, run_id TEXT, data TEXT NOT NULL, actor TEXT NOT NULL
    , scheduled_for TEXT) STRICT;
INSERT INTO "events" VALUES(1,'2026-11-23T01:01:09.536Z','pipeline.deployed','orders',NULL,'{"version":1,"sha256":"7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008"}','ada',NULL);
INSERT INTO "events" VALUES(2,'2026-11-23T01:01:09.537Z','pipeline.deployed','waits',NULL,'{"version":1,"sha256":"7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008"}','ada',NULL);
INSERT INTO "events" VALUES(3,'2026-11-23T01:01:09.551Z','schedule.changed','orders',NULL,'{"source":"decorator","enabled":true,"held":null,"cron":"0 6 * * *","timezone":"Europe/London"}','ada',NULL);
INSERT INTO "events" VALUES(4,'2026-11-23T01:01:09.652Z','run.queued','orders','1m82yqkmm4ahwk','{"version":1,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(5,'2026-11-23T01:01:09.652Z','run.started','orders','1m82yqkmm4ahwk','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(6,'2026-11-23T01:01:09.679Z','run.finished','orders','1m82yqkmm4ahwk','{"status":"success","duration_ms":16.971}','taud',NULL);
INSERT INTO "events" VALUES(7,'2026-11-23T01:01:09.771Z','run.queued','orders','1m82yqkrbwfaba','{"version":1,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(8,'2026-11-23T01:01:09.772Z','run.started','orders','1m82yqkrbwfaba','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(9,'2026-11-23T01:01:09.797Z','run.finished','orders','1m82yqkrbwfaba','{"status":"failed","duration_ms":15.99,"error":{"kind":"exception","type":"KeyError","message":"''amount''","fingerprint":"4e2fd1481b40"}}','taud',NULL);
INSERT INTO "events" VALUES(10,'2026-11-23T01:01:09.912Z','pipeline.deployed','orders',NULL,'{"version":2,"sha256":"df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0"}','ada',NULL);
INSERT INTO "events" VALUES(11,'2026-11-23T01:01:09.912Z','pipeline.deployed','waits',NULL,'{"version":2,"sha256":"df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0"}','ada',NULL);
INSERT INTO "events" VALUES(12,'2026-11-23T01:01:09.996Z','run.queued','orders','1m82yqkzcyv5ht','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(13,'2026-11-23T01:01:09.996Z','run.started','orders','1m82yqkzcyv5ht','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(14,'2026-11-23T01:01:10.014Z','run.finished','orders','1m82yqkzcyv5ht','{"status":"success","duration_ms":9.66}','taud',NULL);
INSERT INTO "events" VALUES(15,'2026-11-23T01:01:10.090Z','run.queued','waits','1m82yqm2a52kvs','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(16,'2026-11-23T01:01:10.090Z','run.started','waits','1m82yqm2a52kvs','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(17,'2026-11-23T01:01:10.198Z','run.finished','waits','1m82yqm2a52kvs','{"status":"cancelled","duration_ms":92.829,"error":{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","fingerprint":"91900bb99422"}}','taud',NULL);
INSERT INTO "events" VALUES(18,'2026-11-23T01:01:10.265Z','run.queued','waits','1m82yqm7seesmt','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(19,'2026-11-23T01:01:10.265Z','run.started','waits','1m82yqm7seesmt','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(20,'2026-11-23T01:01:10.376Z','run.queued','orders','1m82yqmb8kvxaj','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(21,'2026-11-23T01:01:10.443Z','run.queued','orders','1m82yqmdbkt531','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(22,'2026-11-23T01:01:10.476Z','run.finished','orders','1m82yqmdbkt531','{"status":"cancelled","duration_ms":null}','ada',NULL);
INSERT INTO "events" VALUES(23,'2026-11-23T01:01:10.562Z','pipeline.undeployed','waits',NULL,'{"cancelled_runs":0}','ada',NULL);
INSERT INTO "events" VALUES(24,'2026-11-23T01:01:10.562Z','schedule.changed','waits',NULL,'{"source":null,"enabled":true,"held":"undeployed"}','ada',NULL);
INSERT INTO "events" VALUES(25,'2026-11-23T01:01:10.652Z','pipeline.deployed','report',NULL,'{"version":1,"sha256":"665d88bc6cafd581cdfe91f363de23dc20e7c415f5813f13f7d6d881eda37ad1"}','ada',NULL);
INSERT INTO "events" VALUES(26,'2026-11-23T01:01:10.727Z','pipeline.paused','orders',NULL,'{"reason":"on request"}','ada',NULL);
INSERT INTO "events" VALUES(27,'2026-11-23T01:01:10.728Z','schedule.changed','orders',NULL,'{"source":"decorator","enabled":true,"held":"paused","cron":"0 6 * * *","timezone":"Europe/London"}','ada',NULL);
CREATE TABLE logs (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        n INTEGER NOT NULL, at TEXT NOT NULL, level TEXT NOT NULL, step TEXT, stream TEXT,
        message TEXT NOT NULL, fields TEXT,
        PRIMARY KEY (run_id, attempt, n)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "logs" VALUES('1m82yqkmm4ahwk',1,3,'2026-11-23T01:01:09.670Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82yqkmm4ahwk',1,13,'2026-11-23T01:01:09.671Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m82yqkmm4ahwk',1,14,'2026-11-23T01:01:09.671Z','warning',NULL,NULL,'slow',NULL);
INSERT INTO "logs" VALUES('1m82yqkrbwfaba',1,3,'2026-11-23T01:01:09.792Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82yqkzcyv5ht',1,3,'2026-11-23T01:01:10.007Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m82yqkzcyv5ht',1,13,'2026-11-23T01:01:10.007Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m82yqkzcyv5ht',1,14,'2026-11-23T01:01:10.007Z','warning',NULL,NULL,'slow',NULL);
CREATE TABLE memory (name TEXT PRIMARY KEY, data TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "memory" VALUES('alive','{"until":1795395669}');
CREATE TABLE observations (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        n INTEGER NOT NULL, kind TEXT NOT NULL, at TEXT NOT NULL, step TEXT, name TEXT NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (run_id, attempt, n)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "observations" VALUES('1m82yqkmm4ahwk',1,10,'check','2026-11-23T01:01:09.671Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m82yqkmm4ahwk',1,11,'metric','2026-11-23T01:01:09.671Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m82yqkmm4ahwk',1,12,'progress','2026-11-23T01:01:09.671Z',NULL,'','{"done":1,"total":2,"message":"half"}');
INSERT INTO "observations" VALUES('1m82yqkrbwfaba',1,10,'check','2026-11-23T01:01:09.793Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m82yqkrbwfaba',1,11,'metric','2026-11-23T01:01:09.793Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m82yqkrbwfaba',1,12,'progress','2026-11-23T01:01:09.793Z',NULL,'','{"done":1,"total":2,"message":"half"}');
INSERT INTO "observations" VALUES('1m82yqkzcyv5ht',1,10,'check','2026-11-23T01:01:10.007Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m82yqkzcyv5ht',1,11,'metric','2026-11-23T01:01:10.007Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m82yqkzcyv5ht',1,12,'progress','2026-11-23T01:01:10.007Z',NULL,'','{"done":1,"total":2,"message":"half"}');
CREATE TABLE pauses (
        pipeline TEXT PRIMARY KEY, paused_at TEXT NOT NULL, reason TEXT NOT NULL, actor TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "pauses" VALUES('orders','2026-11-23T01:01:10.727Z','on request','ada');
CREATE TABLE pipelines (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, deployed INTEGER NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "pipelines" VALUES('orders',2,1,'2026-11-23T01:01:09.536Z','2026-11-23T01:01:09.912Z');
INSERT INTO "pipelines" VALUES('report',1,1,'2026-11-23T01:01:10.652Z','2026-11-23T01:01:10.652Z');
INSERT INTO "pipelines" VALUES('waits',2,0,'2026-11-23T01:01:09.537Z','2026-11-23T01:01:09.912Z');
CREATE TABLE runs (
        run_id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
        "trigger" TEXT NOT NULL, attempt INTEGER NOT NULL, params TEXT NOT NULL, key TEXT,
        scheduled_for TEXT, queued_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
        duration_ms REAL, result TEXT, error TEXT, upstream TEXT, retry_of TEXT, retry_at TEXT, expires_at TEXT, resume_from TEXT,
        FOREIGN KEY (pipeline, version) REFERENCES versions (pipeline, version)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "runs" VALUES('1m82yqkmm4ahwk','orders',1,'success','manual',1,'{}','first',NULL,'2026-11-23T01:01:09.652Z','2026-11-23T01:01:09.654Z','2026-11-23T01:01:09.671Z',16.971,'{"total":12.5,"day":"é"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82yqkrbwfaba','orders',1,'failed','manual',1,'{"bad":true}','1bd425ce25f6e639a5fc25ab',NULL,'2026-11-23T01:01:09.771Z','2026-11-23T01:01:09.777Z','2026-11-23T01:01:09.793Z',15.99,NULL,'{"kind":"exception","type":"KeyError","message":"''amount''","step":"sum","file":"orders.py","line":16,"code":"raise KeyError(\"amount\")","frames":[{"file":"orders.py","line":16,"function":"orders","code":"raise KeyError(\"amount\")","locals":{"bad":"True"},"user":true}],"cause":null,"fingerprint":"4e2fd1481b40","hint":null}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82yqkzcyv5ht','orders',2,'success','manual',1,'{"bad":false}','0ccfdb04de5b1c705939bab2',NULL,'2026-11-23T01:01:09.996Z','2026-11-23T01:01:09.998Z','2026-11-23T01:01:10.007Z',9.66,'{"total":12.5,"day":"e"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82yqm2a52kvs','waits',2,'cancelled','manual',1,'{}','559411b1d6ccf7513658a448',NULL,'2026-11-23T01:01:10.090Z','2026-11-23T01:01:10.098Z','2026-11-23T01:01:10.191Z',92.829,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","step":"waiting","file":"orders.py","line":25,"code":"time.sleep(600)","frames":[{"file":"orders.py","line":25,"function":"waits","code":"time.sleep(600)","locals":{},"user":true}],"cause":null,"fingerprint":"91900bb99422","hint":null}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82yqm7seesmt','waits',2,'running','manual',1,'{}','41b7d07dc8fa0ab8efa66d12',NULL,'2026-11-23T01:01:10.265Z','2026-11-23T01:01:10.265Z',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82yqmb8kvxaj','orders',2,'queued','manual',1,'{}','queued',NULL,'2026-11-23T01:01:10.376Z',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m82yqmdbkt531','orders',2,'cancelled','manual',1,'{}','97f774fec21d94514f71503d',NULL,'2026-11-23T01:01:10.443Z',NULL,'2026-11-23T01:01:10.476Z',NULL,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled while it waited","step":null,"file":null,"line":null,"code":null,"frames":[],"cause":null,"fingerprint":"91900bb99422","hint":null}',NULL,NULL,NULL,NULL,NULL);
CREATE TABLE schedules (
        pipeline TEXT PRIMARY KEY REFERENCES pipelines (name), command TEXT NOT NULL, options TEXT NOT NULL,
        enabled INTEGER NOT NULL, held TEXT, anchor_at TEXT NOT NULL, watermark_at TEXT NOT NULL,
        next_at TEXT, moved INTEGER NOT NULL, due_at TEXT, expect_at TEXT, resumed_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "schedules" VALUES('orders','{}','{"cron":"0 6 * * *","every_s":null,"at":null,"timezone":"Europe/London","misfire":"last","catchup_window_s":86400.0,"overlap":"skip","jitter_s":0.0,"params":{},"pause_after_failures":null,"expect_success_within_s":null}',1,'paused','2026-11-23T01:01:09.000Z','2026-11-23T01:01:09.000Z','2026-11-23T06:00:00.000Z',0,NULL,NULL,'2026-11-23T01:01:09.000Z');
INSERT INTO "schedules" VALUES('report','{}','{"cron":null,"every_s":null,"at":null,"timezone":null,"misfire":"last","catchup_window_s":86400.0,"overlap":"skip","jitter_s":0.0,"params":{},"pause_after_failures":null,"expect_success_within_s":null}',1,NULL,'2026-11-23T01:01:10.000Z','2026-11-23T01:01:10.000Z',NULL,0,NULL,NULL,'2026-11-23T01:01:10.000Z');
INSERT INTO "schedules" VALUES('waits','{}','{"cron":null,"every_s":null,"at":null,"timezone":null,"misfire":"last","catchup_window_s":86400.0,"overlap":"skip","jitter_s":0.0,"params":{},"pause_after_failures":null,"expect_success_within_s":null}',1,'undeployed','2026-11-23T01:01:09.000Z','2026-11-23T01:01:09.000Z',NULL,0,NULL,NULL,'2026-11-23T01:01:09.000Z');
CREATE TABLE states (
        pipeline TEXT PRIMARY KEY REFERENCES pipelines (name), state TEXT NOT NULL,
        run_id TEXT NOT NULL, updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "states" VALUES('orders','{"runs":2}','1m82yqkzcyv5ht','2026-11-23T01:01:10.014Z');
CREATE TABLE steps (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        step INTEGER NOT NULL, parent INTEGER, name TEXT NOT NULL, path TEXT NOT NULL, status TEXT NOT NULL,
        started_at TEXT NOT NULL, duration_ms REAL, rows_in INTEGER, rows_out INTEGER, error TEXT,
        n INTEGER NOT NULL, finished_n INTEGER, finished_at TEXT, columns TEXT,
        PRIMARY KEY (run_id, attempt, step)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "steps" VALUES('1m82yqkmm4ahwk',1,1,NULL,'extract','extract','success','2026-11-23T01:01:09.670Z',0.071,NULL,2,NULL,1,5,'2026-11-23T01:01:09.670Z',NULL);
INSERT INTO "steps" VALUES('1m82yqkmm4ahwk',1,2,1,'page 1','extract/page 1','success','2026-11-23T01:01:09.670Z',0.039,NULL,NULL,NULL,2,4,'2026-11-23T01:01:09.670Z',NULL);
INSERT INTO "steps" VALUES('1m82yqkmm4ahwk',1,3,NULL,'transform','transform','success','2026-11-23T01:01:09.670Z',0.079,1,1,NULL,6,9,'2026-11-23T01:01:09.670Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82yqkmm4ahwk',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T01:01:09.670Z',0.052,1,1,NULL,7,8,'2026-11-23T01:01:09.670Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82yqkrbwfaba',1,1,NULL,'extract','extract','success','2026-11-23T01:01:09.792Z',0.059,NULL,2,NULL,1,5,'2026-11-23T01:01:09.792Z',NULL);
INSERT INTO "steps" VALUES('1m82yqkrbwfaba',1,2,1,'page 1','extract/page 1','success','2026-11-23T01:01:09.792Z',0.032,NULL,NULL,NULL,2,4,'2026-11-23T01:01:09.792Z',NULL);
INSERT INTO "steps" VALUES('1m82yqkrbwfaba',1,3,NULL,'transform','transform','success','2026-11-23T01:01:09.792Z',0.062,1,1,NULL,6,9,'2026-11-23T01:01:09.792Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82yqkrbwfaba',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T01:01:09.792Z',0.042,1,1,NULL,7,8,'2026-11-23T01:01:09.792Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82yqkrbwfaba',1,5,NULL,'sum','sum','failed','2026-11-23T01:01:09.793Z',0.001,NULL,NULL,'{"type":"KeyError","message":"''amount''"}',13,14,'2026-11-23T01:01:09.793Z',NULL);
INSERT INTO "steps" VALUES('1m82yqkzcyv5ht',1,1,NULL,'extract','extract','success','2026-11-23T01:01:10.007Z',0.056,NULL,2,NULL,1,5,'2026-11-23T01:01:10.007Z',NULL);
INSERT INTO "steps" VALUES('1m82yqkzcyv5ht',1,2,1,'page 1','extract/page 1','success','2026-11-23T01:01:10.007Z',0.03,NULL,NULL,NULL,2,4,'2026-11-23T01:01:10.007Z',NULL);
INSERT INTO "steps" VALUES('1m82yqkzcyv5ht',1,3,NULL,'transform','transform','success','2026-11-23T01:01:10.007Z',0.059,1,1,NULL,6,9,'2026-11-23T01:01:10.007Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82yqkzcyv5ht',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T01:01:10.007Z',0.04,1,1,NULL,7,8,'2026-11-23T01:01:10.007Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m82yqm2a52kvs',1,1,NULL,'waiting','waiting','cancelled','2026-11-23T01:01:10.109Z',81.506,NULL,NULL,'{"type":"Stopped","message":"asked to stop"}',1,2,'2026-11-23T01:01:10.190Z',NULL);
INSERT INTO "steps" VALUES('1m82yqm7seesmt',1,1,NULL,'waiting','waiting','running','2026-11-23T01:01:10.289Z',NULL,NULL,NULL,NULL,1,NULL,NULL,NULL);
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
INSERT INTO "versions" VALUES('orders',1,'7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"schedule":"0 6 * * *","every":null,"timezone":"Europe/London","timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object","properties":{"bad":{"type":"boolean","default":false}},"required":[],"additionalProperties":false},"environment":null}','2026-11-23T01:01:09.536Z','ada');
INSERT INTO "versions" VALUES('orders',2,'df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"schedule":"0 6 * * *","every":null,"timezone":"Europe/London","timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object","properties":{"bad":{"type":"boolean","default":false}},"required":[],"additionalProperties":false},"environment":null}','2026-11-23T01:01:09.912Z','ada');
INSERT INTO "versions" VALUES('report',1,'665d88bc6cafd581cdfe91f363de23dc20e7c415f5813f13f7d6d881eda37ad1','pipelines.py','report','{"function":"report","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":["orders"],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object"},"environment":null}','2026-11-23T01:01:10.652Z','ada');
INSERT INTO "versions" VALUES('waits',1,'7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008','orders.py','waits','{"function":"waits","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object"},"environment":null}','2026-11-23T01:01:09.537Z','ada');
INSERT INTO "versions" VALUES('waits',2,'df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0','orders.py','waits','{"function":"waits","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object"},"environment":null}','2026-11-23T01:01:09.912Z','ada');
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
CREATE INDEX schedules_due ON schedules (due_at, pipeline) WHERE due_at IS NOT NULL;
CREATE INDEX schedules_expecting ON schedules (expect_at) WHERE expect_at IS NOT NULL;
CREATE INDEX chains_down ON chains (upstream, pipeline);
CREATE UNIQUE INDEX runs_by_tick ON runs (pipeline, scheduled_for)
        WHERE scheduled_for IS NOT NULL AND retry_of IS NULL;
CREATE INDEX runs_of_tick ON runs (pipeline, scheduled_for, run_id) WHERE scheduled_for IS NOT NULL;
CREATE UNIQUE INDEX runs_again ON runs (retry_of) WHERE trigger = 'backfill' AND retry_of IS NOT NULL;
CREATE INDEX runs_waiting ON runs (pipeline, run_id) WHERE status = 'queued';
CREATE INDEX events_of_tick ON events (pipeline, scheduled_for, seq) WHERE scheduled_for IS NOT NULL;
CREATE INDEX runs_retrying ON runs (retry_at, run_id) WHERE status = 'retrying';
CREATE INDEX runs_expiring ON runs (expires_at, run_id) WHERE status = 'queued' AND expires_at IS NOT NULL;
COMMIT;
