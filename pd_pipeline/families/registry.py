"""The families of this package, by name.

No out depends on this file: it depends only on the entry points of its own family.
"""

BUILT_IN = {
    "reach": "pd_pipeline.families.reach:Reach",
    "pick_place": "pd_pipeline.families.pick_place:PickPlace",
    "cheetah_dir": "pd_pipeline.families.cheetah_dir:CheetahDir",
    "cheetah_vel": "pd_pipeline.families.cheetah_vel:CheetahVel",
    "ant_dir": "pd_pipeline.families.ant_dir:AntDir",
    "point_robot": "pd_pipeline.families.point_robot:PointRobot",
}
