"""Style sheet of RUN/report.html, for light and dark screens."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d2329;--soft:#66717d;--rule:#e3e7eb;--card:#f6f8fa;
--line:#0b6bcb;--raw:#0b6bcb40}
@media (prefers-color-scheme:dark){:root{--paper:#14181c;--ink:#e4e8ec;--soft:#98a3ae;--rule:#2c333a;
--card:#1c2228;--line:#6cb4ff;--raw:#6cb4ff4d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem clamp(.9rem,4vw,2.5rem) 3rem;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.55rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.2rem 0 .7rem}
p{margin:.3rem 0}.soft,figcaption span,.axis,.none{color:var(--soft)}.soft{overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin-top:1.2rem}
.tiles div{background:var(--card);border:1px solid var(--rule);border-radius:.5rem;padding:.6rem .8rem}
.tiles b{display:block;font-size:1.3rem;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.4rem}
figure{margin:0;min-width:0}figcaption{margin-bottom:.4rem}
.plot{position:relative;margin:0 .8rem 1.7rem 3.6rem;height:13rem}
.wide{margin-bottom:1.2rem}.wide .plot{height:17rem}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:hidden;border-left:1px solid var(--rule);
border-bottom:1px solid var(--rule)}
.plot path{fill:none;vector-effect:non-scaling-stroke}.rule{stroke:var(--rule)}
.raw{stroke:var(--raw);stroke-width:1.2}.line{stroke:var(--line);stroke-width:1.6;stroke-linejoin:round}
.s0{--series:var(--line)}.s1{--series:#d1622b}.s2{--series:#1f9d6b}.s3{--series:#9b59d0}.s4{--series:#b8860b}
.s5{--series:#c2366b}.line.s0,.line.s1,.line.s2,.line.s3,.line.s4,.line.s5{stroke:var(--series)}
.key{display:inline-block;width:1.1rem;height:.25rem;margin:0 .6rem .2rem 0;background:var(--series)}
.line.dashed{stroke-dasharray:9 5}
.key.dashed{clip-path:polygon(0 0,40% 0,40% 100%,60% 100%,60% 0,100% 0,100% 100%,0 100%)}
.dot{stroke-width:8;stroke-linecap:round}
.plot i{position:absolute;font-style:normal;font-size:.78rem;color:var(--soft);white-space:nowrap;
font-variant-numeric:tabular-nums}
.plot .y{right:100%;margin-right:.45rem;transform:translateY(-50%)}
.plot .x{top:100%;margin-top:.25rem;transform:translateX(-50%)}
.axis{text-align:center;font-size:.82rem;margin-top:.1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.pairs td:first-child{color:var(--soft);white-space:nowrap}
.pairs td:last-child{overflow-wrap:anywhere;width:100%}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2.5rem}
img{display:block;max-width:100%;height:auto;border:1px solid var(--rule);border-radius:.4rem;background:#fff}
details{margin:.5rem 0}summary{cursor:pointer}details img{margin:.5rem 0 1rem}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
"""
