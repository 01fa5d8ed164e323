"""temporary until nbs/90_cli.ipynb"""
import sys
from pathlib import Path
def main(argv):
    if argv[:2]==["run-stage","--serve"]:
        from mlnb.pipeline.launch import serve
        return serve(int(argv[2]))
    if argv[0]=="run-stage":
        if "--parent" in argv:
            from mlnb.pipeline.processes import die_with_parent
            die_with_parent(int(argv[argv.index("--parent")+1]))
        from mlnb.pipeline.attempt import run_stage
        return run_stage(Path(argv[1]))
