"""The common style of the toolkit's HTML pages (the audit's and the evaluation's): paper, cards, tables, dark mode."""

PAGE_STYLE = """
:root{--paper:#f4f4f1;--card:#fff;--line:#dcdcd6;--ink:#222428;--grey:#686a70;--text:#be4a14;--control:#4d7396}
@media(prefers-color-scheme:dark){:root{--paper:#17181b;--card:#212327;--line:#3a3d43;--ink:#ececea;--grey:#a2a5ac;
--text:#f0864f;--control:#86aed2}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:70rem;margin:0 auto;padding:1.25rem 1rem 4rem}
.over{color:var(--grey);font-size:.85rem;letter-spacing:.04em;text-transform:uppercase;margin:.5rem 0}
h1{font-size:clamp(1.4rem,4.4vw,2.3rem);line-height:1.2;margin:0 0 1rem;max-width:30em;text-wrap:balance}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:1rem;margin:.8rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--grey);font-weight:500}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:7rem;overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}
ul{padding-left:1.1rem;margin:.4rem 0}li{margin:.25rem 0}
small,.note{color:var(--grey);font-size:.88rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:.9rem}
.grid .card{margin:0;min-width:0;overflow-x:auto}
figure{margin:0}figure img{width:100%;height:auto;display:block;border-radius:.3rem;background:var(--line)}
figcaption{font-size:.75rem;color:var(--grey);line-height:1.25;margin-top:.25rem}
.id{font-weight:600;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.88rem;margin:0}
dt{color:var(--grey)}dd{margin:0;overflow-wrap:anywhere}
"""
