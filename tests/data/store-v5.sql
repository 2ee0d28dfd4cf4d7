-- A store of schema 5, as the taud of its time left it when it was killed with a run under way.
PRAGMA auto_vacuum = 2;
PRAGMA application_id = 1952544049;
PRAGMA user_version = 5;
BEGIN TRANSACTION;
CREATE TABLE attempts (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        journal TEXT NOT NULL, position TEXT NOT NULL, process TEXT, outcome TEXT, ended TEXT,
        stopping TEXT, log_lines INTEGER NOT NULL, log_dropped INTEGER NOT NULL, status TEXT, started_at TEXT, finished_at TEXT, duration_ms REAL, error TEXT,
        PRIMARY KEY (run_id, attempt)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "attempts" VALUES('1m836krg6q9x85',1,'1m836krg6q9x85.1','{"journal":2175,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":12185,"started":"2386760","boot":"00000000-0000-4000-8000-000000000000","session":12185,"server":{"pid":12181,"started":"2386749","boot":"00000000-0000-4000-8000-000000000000"},"at":1795403932.1692913,"mono":23867.713025441}',NULL,'{"t":"end","at":1795403932.1817765,"mono":23867.725509926,"exit_code":0,"signal":null,"cpu_ms":13.336,"max_rss_bytes":19656704,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0,'success','2026-11-23T03:18:52.169Z','2026-11-23T03:18:52.179Z',9.804,NULL);
INSERT INTO "attempts" VALUES('1m836krjet5vpq',1,'1m836krjet5vpq.1','{"journal":2612,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":12188,"started":"2386771","boot":"00000000-0000-4000-8000-000000000000","session":12188,"server":{"pid":12181,"started":"2386749","boot":"00000000-0000-4000-8000-000000000000"},"at":1795403932.2413943,"mono":23867.785128447}',NULL,'{"t":"end","at":1795403932.2533872,"mono":23867.797120488,"exit_code":1,"signal":null,"cpu_ms":13.158,"max_rss_bytes":20881408,"stdout_bytes":0,"stderr_bytes":0}',NULL,1,0,'failed','2026-11-23T03:18:52.241Z','2026-11-23T03:18:52.250Z',9.119,'{"kind":"exception","type":"KeyError","message":"''amount''","step":"sum","file":"orders.py","line":16,"code":"raise KeyError(\"amount\")","frames":[{"file":"orders.py","line":16,"function":"orders","code":"raise KeyError(\"amount\")","locals":{"bad":"True","rows":"[{''id'': 1, ''paid'': True}]"},"user":true}],"cause":null,"fingerprint":"4e2fd1481b40","hint":null}');
INSERT INTO "attempts" VALUES('1m836krq2htjr3',1,'1m836krq2htjr3.1','{"journal":2175,"stdout":0,"stderr":0,"n":14,"bad":0}','{"t":"start","format":1,"pid":12192,"started":"2386785","boot":"00000000-0000-4000-8000-000000000000","session":12192,"server":{"pid":12181,"started":"2386749","boot":"00000000-0000-4000-8000-000000000000"},"at":1795403932.3886714,"mono":23867.932405799}',NULL,'{"t":"end","at":1795403932.402235,"mono":23867.945968443,"exit_code":0,"signal":null,"cpu_ms":14.4,"max_rss_bytes":19562496,"stdout_bytes":0,"stderr_bytes":0}',NULL,3,0,'success','2026-11-23T03:18:52.388Z','2026-11-23T03:18:52.399Z',10.764,NULL);
INSERT INTO "attempts" VALUES('1m836krsdxd2hr',1,'1m836krsdxd2hr.1','{"journal":1096,"stdout":0,"stderr":0,"n":2,"bad":0}','{"t":"start","format":1,"pid":12194,"started":"2386793","boot":"00000000-0000-4000-8000-000000000000","session":12194,"server":{"pid":12181,"started":"2386749","boot":"00000000-0000-4000-8000-000000000000"},"at":1795403932.4639626,"mono":23868.007697431}',NULL,'{"t":"end","at":1795403932.6716278,"mono":23868.215361289,"exit_code":1,"signal":null,"cpu_ms":13.653,"max_rss_bytes":20627456,"stdout_bytes":0,"stderr_bytes":0}','cancelled',0,0,'cancelled','2026-11-23T03:18:52.463Z','2026-11-23T03:18:52.668Z',204.616,'{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","step":"waiting","file":"orders.py","line":25,"code":"time.sleep(600)","frames":[{"file":"orders.py","line":25,"function":"waits","code":"time.sleep(600)","locals":{},"user":true}],"cause":null,"fingerprint":"91900bb99422","hint":null}');
INSERT INTO "attempts" VALUES('1m836ks1stv22j',1,'1m836ks1stv22j.1','{"journal":349,"stdout":0,"stderr":0,"n":1,"bad":0}','{"t":"start","format":1,"pid":12196,"started":"2386801","boot":"00000000-0000-4000-8000-000000000000","session":12196,"server":{"pid":12181,"started":"2386749","boot":"00000000-0000-4000-8000-000000000000"},"at":1795403932.7317476,"mono":23868.275481849}',NULL,NULL,NULL,0,0,'running','2026-11-23T03:18:52.729Z',NULL,NULL,NULL);
CREATE TABLE chains (
        pipeline TEXT NOT NULL, comes_after TEXT NOT NULL, run_id TEXT, PRIMARY KEY (pipeline, comes_after)
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
INSERT INTO "events" VALUES(1,'2026-11-23T03:18:52.079Z','pipeline.deployed','orders',NULL,'{"version":1,"sha256":"7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008"}','ada',NULL);
INSERT INTO "events" VALUES(2,'2026-11-23T03:18:52.079Z','pipeline.deployed','waits',NULL,'{"version":1,"sha256":"7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008"}','ada',NULL);
INSERT INTO "events" VALUES(3,'2026-11-23T03:18:52.105Z','schedule.changed','orders',NULL,'{"source":"decorator","enabled":true,"held":null,"cron":"0 6 * * *","timezone":"Europe/London"}','ada',NULL);
INSERT INTO "events" VALUES(4,'2026-11-23T03:18:52.166Z','run.queued','orders','1m836krg6q9x85','{"version":1,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(5,'2026-11-23T03:18:52.167Z','run.started','orders','1m836krg6q9x85','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(6,'2026-11-23T03:18:52.183Z','run.finished','orders','1m836krg6q9x85','{"status":"success","duration_ms":9.804}','taud',NULL);
INSERT INTO "events" VALUES(7,'2026-11-23T03:18:52.238Z','run.queued','orders','1m836krjet5vpq','{"version":1,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(8,'2026-11-23T03:18:52.239Z','run.started','orders','1m836krjet5vpq','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(9,'2026-11-23T03:18:52.255Z','run.finished','orders','1m836krjet5vpq','{"status":"failed","duration_ms":9.119,"error":{"kind":"exception","type":"KeyError","message":"''amount''","fingerprint":"4e2fd1481b40"}}','taud',NULL);
INSERT INTO "events" VALUES(10,'2026-11-23T03:18:52.329Z','pipeline.deployed','orders',NULL,'{"version":2,"sha256":"df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0"}','ada',NULL);
INSERT INTO "events" VALUES(11,'2026-11-23T03:18:52.329Z','pipeline.deployed','waits',NULL,'{"version":2,"sha256":"df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0"}','ada',NULL);
INSERT INTO "events" VALUES(12,'2026-11-23T03:18:52.386Z','run.queued','orders','1m836krq2htjr3','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(13,'2026-11-23T03:18:52.386Z','run.started','orders','1m836krq2htjr3','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(14,'2026-11-23T03:18:52.403Z','run.finished','orders','1m836krq2htjr3','{"status":"success","duration_ms":10.764}','taud',NULL);
INSERT INTO "events" VALUES(15,'2026-11-23T03:18:52.461Z','run.queued','waits','1m836krsdxd2hr','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(16,'2026-11-23T03:18:52.462Z','run.started','waits','1m836krsdxd2hr','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(17,'2026-11-23T03:18:52.673Z','run.finished','waits','1m836krsdxd2hr','{"status":"cancelled","duration_ms":204.616,"error":{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","fingerprint":"91900bb99422"}}','taud',NULL);
INSERT INTO "events" VALUES(18,'2026-11-23T03:18:52.729Z','run.queued','waits','1m836ks1stv22j','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(19,'2026-11-23T03:18:52.729Z','run.started','waits','1m836ks1stv22j','{"attempt":1}','taud',NULL);
INSERT INTO "events" VALUES(20,'2026-11-23T03:18:52.876Z','run.queued','orders','1m836ks6b4b47d','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(21,'2026-11-23T03:18:52.926Z','run.queued','orders','1m836ks7y94gka','{"version":2,"trigger":"manual"}','ada',NULL);
INSERT INTO "events" VALUES(22,'2026-11-23T03:18:52.972Z','run.finished','orders','1m836ks7y94gka','{"status":"cancelled","duration_ms":null}','ada',NULL);
INSERT INTO "events" VALUES(23,'2026-11-23T03:18:53.019Z','pipeline.undeployed','waits',NULL,'{"cancelled_runs":0}','ada',NULL);
INSERT INTO "events" VALUES(24,'2026-11-23T03:18:53.019Z','schedule.changed','waits',NULL,'{"source":null,"enabled":true,"held":"undeployed"}','ada',NULL);
INSERT INTO "events" VALUES(25,'2026-11-23T03:18:53.081Z','pipeline.deployed','report',NULL,'{"version":1,"sha256":"665d88bc6cafd581cdfe91f363de23dc20e7c415f5813f13f7d6d881eda37ad1"}','ada',NULL);
INSERT INTO "events" VALUES(26,'2026-11-23T03:18:53.130Z','pipeline.paused','orders',NULL,'{"reason":"on request"}','ada',NULL);
INSERT INTO "events" VALUES(27,'2026-11-23T03:18:53.130Z','schedule.changed','orders',NULL,'{"source":"decorator","enabled":true,"held":"paused","cron":"0 6 * * *","timezone":"Europe/London"}','ada',NULL);
INSERT INTO "events" VALUES(28,'2026-11-23T03:18:53.143Z','key.created',NULL,NULL,'{"name":"ci","scope":"read","pipelines":["orders*"],"expires_at":"2036-11-20T03:18:53.142Z"}','ada',NULL);
CREATE TABLE keys (
        name TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, scope TEXT NOT NULL, pipelines TEXT NOT NULL,
        created_at TEXT NOT NULL, expires_at TEXT, used_at TEXT, revoked_at TEXT, actor TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "keys" VALUES('ci','8a2d5be0771eb3752cf2f6f19a7e3730a46492a62ec854739631504d5cfae29f','read','["orders*"]','2026-11-23T03:18:53.143Z','2036-11-20T03:18:53.142Z',NULL,NULL,'ada');
CREATE TABLE logs (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        n INTEGER NOT NULL, at TEXT NOT NULL, level TEXT NOT NULL, step TEXT, stream TEXT,
        message TEXT NOT NULL, fields TEXT,
        PRIMARY KEY (run_id, attempt, n)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "logs" VALUES('1m836krg6q9x85',1,3,'2026-11-23T03:18:52.178Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m836krg6q9x85',1,13,'2026-11-23T03:18:52.179Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m836krg6q9x85',1,14,'2026-11-23T03:18:52.179Z','warning',NULL,NULL,'slow',NULL);
INSERT INTO "logs" VALUES('1m836krjet5vpq',1,3,'2026-11-23T03:18:52.249Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m836krq2htjr3',1,3,'2026-11-23T03:18:52.398Z','info','extract/page 1',NULL,'fetched','{"rows":2}');
INSERT INTO "logs" VALUES('1m836krq2htjr3',1,13,'2026-11-23T03:18:52.399Z','info',NULL,'stdout','printed',NULL);
INSERT INTO "logs" VALUES('1m836krq2htjr3',1,14,'2026-11-23T03:18:52.399Z','warning',NULL,NULL,'slow',NULL);
CREATE TABLE memory (name TEXT PRIMARY KEY, data TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "memory" VALUES('alive','{"until":1795403931}');
CREATE TABLE observations (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        n INTEGER NOT NULL, kind TEXT NOT NULL, at TEXT NOT NULL, step TEXT, name TEXT NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (run_id, attempt, n)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "observations" VALUES('1m836krg6q9x85',1,10,'check','2026-11-23T03:18:52.178Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m836krg6q9x85',1,11,'metric','2026-11-23T03:18:52.178Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m836krg6q9x85',1,12,'progress','2026-11-23T03:18:52.178Z',NULL,'','{"done":1,"total":2,"message":"half"}');
INSERT INTO "observations" VALUES('1m836krjet5vpq',1,10,'check','2026-11-23T03:18:52.249Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m836krjet5vpq',1,11,'metric','2026-11-23T03:18:52.249Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m836krjet5vpq',1,12,'progress','2026-11-23T03:18:52.249Z',NULL,'','{"done":1,"total":2,"message":"half"}');
INSERT INTO "observations" VALUES('1m836krq2htjr3',1,10,'check','2026-11-23T03:18:52.399Z',NULL,'len(list(rows)) == 1','{"passed":true,"severity":"error","values":{},"error":null}');
INSERT INTO "observations" VALUES('1m836krq2htjr3',1,11,'metric','2026-11-23T03:18:52.399Z',NULL,'rejected','{"value":0}');
INSERT INTO "observations" VALUES('1m836krq2htjr3',1,12,'progress','2026-11-23T03:18:52.399Z',NULL,'','{"done":1,"total":2,"message":"half"}');
CREATE TABLE pauses (
        pipeline TEXT PRIMARY KEY, paused_at TEXT NOT NULL, reason TEXT NOT NULL, actor TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "pauses" VALUES('orders','2026-11-23T03:18:53.130Z','on request','ada');
CREATE TABLE pipelines (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, deployed INTEGER NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "pipelines" VALUES('orders',2,1,'2026-11-23T03:18:52.079Z','2026-11-23T03:18:52.328Z');
INSERT INTO "pipelines" VALUES('report',1,1,'2026-11-23T03:18:53.081Z','2026-11-23T03:18:53.081Z');
INSERT INTO "pipelines" VALUES('waits',2,0,'2026-11-23T03:18:52.079Z','2026-11-23T03:18:52.329Z');
CREATE TABLE runs (
        run_id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
        "trigger" TEXT NOT NULL, attempt INTEGER NOT NULL, params TEXT NOT NULL, key TEXT,
        scheduled_for TEXT, queued_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
        duration_ms REAL, result TEXT, error TEXT, upstream TEXT, retry_of TEXT, retry_at TEXT, expires_at TEXT, resume_from TEXT,
        FOREIGN KEY (pipeline, version) REFERENCES versions (pipeline, version)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "runs" VALUES('1m836krg6q9x85','orders',1,'success','manual',1,'{}','first',NULL,'2026-11-23T03:18:52.166Z','2026-11-23T03:18:52.169Z','2026-11-23T03:18:52.179Z',9.804,'{"total":12.5,"day":"é"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m836krjet5vpq','orders',1,'failed','manual',1,'{"bad":true}','db3233b348d74f43f4494ec7',NULL,'2026-11-23T03:18:52.238Z','2026-11-23T03:18:52.241Z','2026-11-23T03:18:52.250Z',9.119,NULL,'{"kind":"exception","type":"KeyError","message":"''amount''","step":"sum","file":"orders.py","line":16,"code":"raise KeyError(\"amount\")","frames":[{"file":"orders.py","line":16,"function":"orders","code":"raise KeyError(\"amount\")","locals":{"bad":"True","rows":"[{''id'': 1, ''paid'': True}]"},"user":true}],"cause":null,"fingerprint":"4e2fd1481b40","hint":null}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m836krq2htjr3','orders',2,'success','manual',1,'{"bad":false}','441fb6b93ab6d1d22603f391',NULL,'2026-11-23T03:18:52.386Z','2026-11-23T03:18:52.388Z','2026-11-23T03:18:52.399Z',10.764,'{"total":12.5,"day":"e"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m836krsdxd2hr','waits',2,'cancelled','manual',1,'{}','9e5ae0979e99089c110def3c',NULL,'2026-11-23T03:18:52.461Z','2026-11-23T03:18:52.463Z','2026-11-23T03:18:52.668Z',204.616,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled on request","step":"waiting","file":"orders.py","line":25,"code":"time.sleep(600)","frames":[{"file":"orders.py","line":25,"function":"waits","code":"time.sleep(600)","locals":{},"user":true}],"cause":null,"fingerprint":"91900bb99422","hint":null}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m836ks1stv22j','waits',2,'running','manual',1,'{}','b4626c95a1bf5cc7eecd5c07',NULL,'2026-11-23T03:18:52.729Z','2026-11-23T03:18:52.729Z',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m836ks6b4b47d','orders',2,'queued','manual',1,'{}','queued',NULL,'2026-11-23T03:18:52.875Z',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES('1m836ks7y94gka','orders',2,'cancelled','manual',1,'{}','cd748b2e8d55bb9d357bf22a',NULL,'2026-11-23T03:18:52.926Z',NULL,'2026-11-23T03:18:52.972Z',NULL,NULL,'{"kind":"cancelled","type":"Cancelled","message":"cancelled while it waited","step":null,"file":null,"line":null,"code":null,"frames":[],"cause":null,"fingerprint":"91900bb99422","hint":null}',NULL,NULL,NULL,NULL,NULL);
CREATE TABLE schedules (
        pipeline TEXT PRIMARY KEY REFERENCES pipelines (name), command TEXT NOT NULL, options TEXT NOT NULL,
        enabled INTEGER NOT NULL, held TEXT, anchor_at TEXT NOT NULL, watermark_at TEXT NOT NULL,
        next_at TEXT, moved INTEGER NOT NULL, due_at TEXT, expect_at TEXT, resumed_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "schedules" VALUES('orders','{}','{"cron":"0 6 * * *","every_s":null,"at":null,"timezone":"Europe/London","misfire":"last","catchup_window_s":86400.0,"overlap":"skip","jitter_s":0.0,"params":{},"pause_after_failures":null,"expect_success_within_s":null}',1,'paused','2026-11-23T03:18:52.000Z','2026-11-23T03:18:52.000Z','2026-11-23T06:00:00.000Z',0,NULL,NULL,'2026-11-23T03:18:52.000Z');
INSERT INTO "schedules" VALUES('report','{}','{"cron":null,"every_s":null,"at":null,"timezone":null,"misfire":"last","catchup_window_s":86400.0,"overlap":"skip","jitter_s":0.0,"params":{},"pause_after_failures":null,"expect_success_within_s":null}',1,NULL,'2026-11-23T03:18:53.000Z','2026-11-23T03:18:53.000Z',NULL,0,NULL,NULL,'2026-11-23T03:18:53.000Z');
INSERT INTO "schedules" VALUES('waits','{}','{"cron":null,"every_s":null,"at":null,"timezone":null,"misfire":"last","catchup_window_s":86400.0,"overlap":"skip","jitter_s":0.0,"params":{},"pause_after_failures":null,"expect_success_within_s":null}',1,'undeployed','2026-11-23T03:18:52.000Z','2026-11-23T03:18:52.000Z',NULL,0,NULL,NULL,'2026-11-23T03:18:52.000Z');
CREATE TABLE states (
        pipeline TEXT PRIMARY KEY REFERENCES pipelines (name), state TEXT NOT NULL,
        run_id TEXT NOT NULL, updated_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
INSERT INTO "states" VALUES('orders','{"runs":2}','1m836krq2htjr3','2026-11-23T03:18:52.403Z');
CREATE TABLE steps (
        run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, attempt INTEGER NOT NULL,
        step INTEGER NOT NULL, parent INTEGER, name TEXT NOT NULL, path TEXT NOT NULL, status TEXT NOT NULL,
        started_at TEXT NOT NULL, duration_ms REAL, rows_in INTEGER, rows_out INTEGER, error TEXT,
        n INTEGER NOT NULL, finished_n INTEGER, finished_at TEXT, columns TEXT,
        PRIMARY KEY (run_id, attempt, step)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "steps" VALUES('1m836krg6q9x85',1,1,NULL,'extract','extract','success','2026-11-23T03:18:52.178Z',0.074,NULL,2,NULL,1,5,'2026-11-23T03:18:52.178Z',NULL);
INSERT INTO "steps" VALUES('1m836krg6q9x85',1,2,1,'page 1','extract/page 1','success','2026-11-23T03:18:52.178Z',0.045,NULL,NULL,NULL,2,4,'2026-11-23T03:18:52.178Z',NULL);
INSERT INTO "steps" VALUES('1m836krg6q9x85',1,3,NULL,'transform','transform','success','2026-11-23T03:18:52.178Z',0.091,1,1,NULL,6,9,'2026-11-23T03:18:52.178Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m836krg6q9x85',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T03:18:52.178Z',0.061,1,1,NULL,7,8,'2026-11-23T03:18:52.178Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m836krjet5vpq',1,1,NULL,'extract','extract','success','2026-11-23T03:18:52.248Z',0.071,NULL,2,NULL,1,5,'2026-11-23T03:18:52.249Z',NULL);
INSERT INTO "steps" VALUES('1m836krjet5vpq',1,2,1,'page 1','extract/page 1','success','2026-11-23T03:18:52.249Z',0.042,NULL,NULL,NULL,2,4,'2026-11-23T03:18:52.249Z',NULL);
INSERT INTO "steps" VALUES('1m836krjet5vpq',1,3,NULL,'transform','transform','success','2026-11-23T03:18:52.249Z',0.094,1,1,NULL,6,9,'2026-11-23T03:18:52.249Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m836krjet5vpq',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T03:18:52.249Z',0.065,1,1,NULL,7,8,'2026-11-23T03:18:52.249Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m836krjet5vpq',1,5,NULL,'sum','sum','failed','2026-11-23T03:18:52.249Z',0.002,NULL,NULL,'{"type":"KeyError","message":"''amount''"}',13,14,'2026-11-23T03:18:52.250Z',NULL);
INSERT INTO "steps" VALUES('1m836krq2htjr3',1,1,NULL,'extract','extract','success','2026-11-23T03:18:52.398Z',0.079,NULL,2,NULL,1,5,'2026-11-23T03:18:52.398Z',NULL);
INSERT INTO "steps" VALUES('1m836krq2htjr3',1,2,1,'page 1','extract/page 1','success','2026-11-23T03:18:52.398Z',0.047,NULL,NULL,NULL,2,4,'2026-11-23T03:18:52.398Z',NULL);
INSERT INTO "steps" VALUES('1m836krq2htjr3',1,3,NULL,'transform','transform','success','2026-11-23T03:18:52.398Z',0.109,1,1,NULL,6,9,'2026-11-23T03:18:52.398Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m836krq2htjr3',1,4,3,'<lambda>','transform/<lambda>','success','2026-11-23T03:18:52.398Z',0.075,1,1,NULL,7,8,'2026-11-23T03:18:52.398Z','{"id":"integer","paid":"boolean"}');
INSERT INTO "steps" VALUES('1m836krsdxd2hr',1,1,NULL,'waiting','waiting','cancelled','2026-11-23T03:18:52.474Z',193.123,NULL,NULL,'{"type":"Stopped","message":"asked to stop"}',1,2,'2026-11-23T03:18:52.667Z',NULL);
INSERT INTO "steps" VALUES('1m836ks1stv22j',1,1,NULL,'waiting','waiting','running','2026-11-23T03:18:52.743Z',NULL,NULL,NULL,NULL,1,NULL,NULL,NULL);
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
INSERT INTO "versions" VALUES('orders',1,'7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"schedule":"0 6 * * *","every":null,"timezone":"Europe/London","timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object","properties":{"bad":{"type":"boolean","default":false}},"required":[],"additionalProperties":false},"environment":null}','2026-11-23T03:18:52.079Z','ada');
INSERT INTO "versions" VALUES('orders',2,'df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0','orders.py','orders','{"function":"orders","description":"Paid orders","tags":["daily"],"schedule":"0 6 * * *","every":null,"timezone":"Europe/London","timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object","properties":{"bad":{"type":"boolean","default":false}},"required":[],"additionalProperties":false},"environment":null}','2026-11-23T03:18:52.328Z','ada');
INSERT INTO "versions" VALUES('report',1,'665d88bc6cafd581cdfe91f363de23dc20e7c415f5813f13f7d6d881eda37ad1','pipelines.py','report','{"function":"report","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":["orders"],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object"},"environment":null}','2026-11-23T03:18:53.081Z','ada');
INSERT INTO "versions" VALUES('waits',1,'7cc5459b09426d6092d844a1d027a42b1c260067fb0759b946d6c060e3e32008','orders.py','waits','{"function":"waits","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object"},"environment":null}','2026-11-23T03:18:52.079Z','ada');
INSERT INTO "versions" VALUES('waits',2,'df43a20b208895276952f4f3451e84224f13dc8868510e800286d338fe7f93b0','orders.py','waits','{"function":"waits","description":"","tags":[],"schedule":null,"every":null,"timezone":null,"timeout":null,"retries":0,"retry_delay":0.0,"retry_backoff":1.0,"retry_delay_max":null,"retry_jitter":0.0,"retry_on":null,"queue_timeout":null,"memory":null,"max_concurrent":null,"overlap":"skip","misfire":"last","catchup_window":86400.0,"jitter":0.0,"after":[],"pause_after_failures":null,"expect_success_within":null,"params":{"type":"object"},"environment":null}','2026-11-23T03:18:52.329Z','ada');
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
CREATE INDEX chains_down ON chains (comes_after, pipeline);
CREATE UNIQUE INDEX runs_by_tick ON runs (pipeline, scheduled_for)
        WHERE scheduled_for IS NOT NULL AND retry_of IS NULL;
CREATE INDEX runs_of_tick ON runs (pipeline, scheduled_for, run_id) WHERE scheduled_for IS NOT NULL;
CREATE UNIQUE INDEX runs_again ON runs (retry_of) WHERE trigger = 'backfill' AND retry_of IS NOT NULL;
CREATE INDEX runs_waiting ON runs (pipeline, run_id) WHERE status = 'queued';
CREATE INDEX events_of_tick ON events (pipeline, scheduled_for, seq) WHERE scheduled_for IS NOT NULL;
CREATE INDEX runs_retrying ON runs (retry_at, run_id) WHERE status = 'retrying';
CREATE INDEX runs_expiring ON runs (expires_at, run_id) WHERE status = 'queued' AND expires_at IS NOT NULL;
COMMIT;
